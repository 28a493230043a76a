"""ProfileRequest -> Profile: times the very modules and collectives that training uses."""
