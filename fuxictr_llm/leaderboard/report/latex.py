"""Texts as LaTeX sets them."""

OF_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": "$<$", ">": "$>$", "…": r"\dots{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(OF_LATEX.get(sign, sign) for sign in " ".join(str(text).split()))
