"""Mask files of other tools: one form a file, each a row of `forms.FORMS`, and what reads them all."""
