"""Small models, tokenizers and data that several test modules build."""
