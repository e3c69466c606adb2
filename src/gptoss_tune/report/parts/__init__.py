"""What pages are put together from: texts, tables and drawings as HTML, and the files of a run."""
