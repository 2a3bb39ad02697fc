"""The bundled demo: drawn screens with their truth, a small trained Qwen3-VL, a recording.

From a seed to a recording:

    scene.py         what is on a screen: windows, places, topics, focus; sampled from a seed
    paint.py         a scene as pixels: desktop, title bars, the inside of each window
    questions.py     the questions, their paraphrases and the true answers
    screens.py       which seeds are whose; a folder of held-out screens and their truth
    record.py        the demo recording, drawn again from its seed
    recording/       the demo recording and its truth

From a seed to a checkpoint (`make train-demo`):

    checkpoint_files.py  tokenizer, configuration, chat template and preprocessor settings
    training_data.py screens as model input, in batches
    train.py         training; the only module that imports torch and transformers
    evaluate.py      how many answers are true, decoded by mlx-vlm live
    checkpoint/      the trained checkpoint in Hugging Face layout, with its model card

Nothing here imports `cache`, `precompute` or `infer`, and MLX only to evaluate.
"""
