// The name under which MLX calls a matrix product, over the one that numpy's OpenBLAS has, with its 64-bit integers.
#include <cstdint>

using Product = void (*)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *,
                         int64_t, float, float *, int64_t);
static Product product = nullptr;

extern "C" void seeonce_use_product(Product numpys) { product = numpys; }

extern "C" void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
                            int lda, const float *b, int ldb, float beta, float *c, int ldc) {
    product(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
