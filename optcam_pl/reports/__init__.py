"""From rows to numbers, tables and pages."""
