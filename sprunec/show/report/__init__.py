"""Runs on a page and in Markdown: what they were, how small models compare with their dense ones, what they kept."""
