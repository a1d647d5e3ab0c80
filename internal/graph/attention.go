package graph

// PlainAttention returns the number of heads of a com.microsoft
// MultiHeadAttention(Q, K, V, "", "", mask) that has nothing but an additive mask
// beside its three operands: no bias, past or present, and no causal order. ok is
// false for anything else.
func PlainAttention(n *Node) (heads int64, ok bool) {
	heads = n.Int("num_heads", 0)
	if n.Domain != DomainMS || n.Op != "MultiHeadAttention" || len(n.Outputs) != 1 || heads <= 0 || n.Int("unidirectional", 0) != 0 {
		return 0, false
	}
	for i, in := range n.Inputs {
		if i > 2 && i != 5 && in != "" {
			return 0, false
		}
	}
	return heads, true
}

// OnlyBesideShapes reports whether one node and nothing but Shapes beside it read
// the value, which is not visible outside.
func (ix *Index) OnlyBesideShapes(value string) bool {
	readers := 0
	for _, u := range ix.Uses(value) {
		if !u.Node.Is("Shape") {
			readers++
		}
	}
	return readers == 1 && !ix.IsOutput(value) && !ix.Captured(value)
}

// JoinColumns puts the columns of matrices [rows, width] side by side: [rows, n width]
// of n. With one row a part may be nil, for zeros.
func JoinColumns[T any](parts [][]T, rows, width int64) []T {
	n := int64(len(parts))
	out := make([]T, rows*n*width)
	for i, p := range parts {
		for r := range rows {
			copy(out[(n*r+int64(i))*width:][:width], p[r*width:])
		}
	}
	return out
}
