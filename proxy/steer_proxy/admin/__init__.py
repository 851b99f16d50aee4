"""The admin plane: never on the data port."""
