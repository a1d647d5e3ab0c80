package graph

// Sizes returns the bytes of each value that a run of m computes or is given, as
// far as its type and dimensions are known with bind (see MACs).
func Sizes(m *Model, bind map[string]int64) map[string]int64 {
	if bind == nil {
		bind = map[string]int64{}
	}
	f := infer(m, bind, true)
	sizes := make(map[string]int64, len(f.vals))
	for name, v := range f.vals {
		n := product(v.Dims)
		if v.Dims == nil || n.N < 0 || n.N > maxSize/8 || v.Type.Bits() == 0 {
			continue
		}
		sizes[name] = v.Type.Bytes(n.N)
	}
	return sizes
}
