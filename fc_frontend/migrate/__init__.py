"""Convert an existing haproxy.cfg to declarations.  Pure: texts in, texts and problems out."""
