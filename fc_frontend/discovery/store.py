def load_answers(path): return {}
def dump_answers(resolution): return b"{}"
