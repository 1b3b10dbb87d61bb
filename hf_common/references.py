"""Papers, as cards cite them."""

import re
from typing import NamedTuple


class Paper(NamedTuple):
    """One paper, in the words of a list of references."""

    authors: str
    title: str
    where: str  # and when
    arxiv: str | None = None  # its number

    def markdown(self) -> str:
        """`A. One, B. Two. *Title.* Where. [arXiv:1234.56789](...)`."""
        text = f"{self.authors}. *{self.title}.* {self.where}."
        return text if self.arxiv is None else f"{text} [arXiv:{self.arxiv}](https://arxiv.org/abs/{self.arxiv})"


def bibtex(paper: Paper, year: str, suffix: str = "") -> str:
    """The BibTeX entry; of a paper on arXiv by its number. `suffix` makes keys of one author and year differ."""
    lines = {
        "author": paper.authors.replace(" et al.", " and others").replace(" & ", " and "),
        "title": f"{{{paper.title}}}",  # two pairs of braces keep the capitals
        "year": year,
    }
    if paper.arxiv is None:
        lines["howpublished"] = paper.where
    else:
        lines |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
    key = re.split(r"\W", paper.authors, maxsplit=1)[0].lower() + year + suffix
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in lines.items())
    return f"@misc{{{key},\n{body}\n}}"
