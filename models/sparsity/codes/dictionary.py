"""Sparse coding of embedding tables: each row is a combination of a few atoms of a small dictionary.

Dictionary by scikit-learn's mini-batch dictionary learning (Mairal et al., 2009), codes by orthogonal matching pursuit.

Letters: R rows, d width, A atoms, k atoms of a row.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode


@dataclass(frozen=True)
class SparseCode:
    """A table as codes and dictionary: row r is ``codes[r] @ atoms + center``.

    Attributes:
        codes: (R, A), at most k values per row.
        atoms: (A, d) float32.
        center: (d,) mean row.
    """

    codes: sp.csr_matrix
    atoms: npt.NDArray[np.float32]
    center: npt.NDArray[np.float32]

    def rows(self) -> npt.NDArray[np.float32]:
        """(R, d) the table that the codes stand for."""
        return np.asarray(self.codes @ self.atoms + self.center, dtype=np.float32)

    @property
    def bytes(self) -> int:
        """Codes as one byte (two above 256 atoms) for the atom and two (float16) for the value, and the dictionary."""
        place = 1 if len(self.atoms) <= 256 else 2
        return int(self.codes.nnz * (place + 2) + self.codes.shape[0] + 2 * (self.atoms.size + self.center.size))


def learn(table_Rd: npt.NDArray[np.float32], *, atoms: int, active: int, seed: int = 0) -> SparseCode:
    """Code ``table_Rd`` with ``active`` out of ``atoms`` atoms per row; values are rounded to the stored float16."""
    center = table_Rd.mean(0)
    rows = table_Rd - center
    learner = MiniBatchDictionaryLearning(
        n_components=atoms, alpha=0.1, max_iter=30, batch_size=512, transform_n_nonzero_coefs=active, random_state=seed
    )
    dictionary = learner.fit(rows).components_
    codes = sparse_encode(rows, dictionary, algorithm="omp", n_nonzero_coefs=active)
    rounded = sp.csr_matrix(codes.astype(np.float16).astype(np.float32))
    return SparseCode(rounded, dictionary.astype(np.float16).astype(np.float32), center.astype(np.float32))
