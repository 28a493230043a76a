"""The searches of the papers, for those who want to compare: what they find carries no certificate."""
