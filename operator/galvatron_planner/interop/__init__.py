"""Plans and profiles of Hetu-Galvatron, the system of the papers' authors, as ours, and plans of ours as theirs."""
