"""The bundled demo: drawn screens with their truth, a small trained Qwen3-VL, a recording.

    scene.py         what is on a screen: windows, places, topics, focus; sampled from a seed
    paint.py         a scene as pixels: desktop, title bars, labels
    apps.py          the inside of each application's window
    screens.py       a seed as a picture and its truth; a folder of held-out screens
    questions.py     the questions, their paraphrases and the true answers
    score.py         which answers are true
    evaluate.py      how many answers are true, decoded by mlx-vlm live
    record.py        the demo recording, regenerated from its seed
    packing.py       questions about images as packed token rows
    training_data.py screens as model input, in batches
    checkpoint_files.py  tokenizer, configuration, chat template and preprocessor settings
    train.py         training; the only module that imports torch and transformers
    checkpoint/      the trained checkpoint in Hugging Face layout, with its model card
    recording/       the demo recording and its truth.json

Nothing here imports `cache`, `precompute` or `infer`, and MLX only to evaluate.
"""
