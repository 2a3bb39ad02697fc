"""Speed and memory of both passes and the store, measured beside what people use today."""
