"""DreamBooth: a full fine-tune that keeps what the base knows of a class."""
