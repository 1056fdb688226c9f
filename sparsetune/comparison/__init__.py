"""Accuracy against bytes and seconds of every method, ours and PEFT's: as data, found, drawn."""
