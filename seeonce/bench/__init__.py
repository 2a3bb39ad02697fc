"""Speed and memory of both passes and the store, measured beside what people use today.

``suite`` runs the workloads: ``prompt_experiment``, ``decoding``, ``resolution``, ``encoding``, ``store``,
``memory``, and another server (``endpoint``). Ours is in ``passes``, mlx-vlm in ``baseline``; ``judge`` says
which answers are right, ``report`` is what comes out.
"""
