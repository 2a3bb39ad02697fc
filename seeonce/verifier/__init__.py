"""verify-cache: holds the store against live encoding, and says what it proved.

``verify`` begins. ``levels`` checks bytes (``byte_check``), features (``embeddings``) and answers
(``outputs``) against mlx-vlm live (``reference``). ``controls`` puts faults (``faults``) into copies, and the
same check must object to them. ``report`` is what comes out; ``canary`` is a short trial of the same kind.
"""
