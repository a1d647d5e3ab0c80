package graph

// MACs returns the multiply-accumulates of one run of each convolution, matrix
// product and attention of the main graph, float or quantized, products of two
// activations included. bind gives sizes to symbolic dimensions by name
// ("batch": 1), or to one dimension of one input ("input_ids[1]": 128), which
// takes precedence and tells apart dimensions that a tool gave the same name.
//
// A node whose dimensions stay unknown is not in the map; neither are nodes
// that multiply element by element (normalization, bias, activation).
func MACs(m *Model, bind map[string]int64) map[*Node]int64 {
	all, _ := MACsApart(m, bind)
	return all
}

// MACsApart returns MACs and, of nodes that project and attend in one (com.microsoft's
// Attention and QAttention), how many of them are of the scores and of their sum over
// the values.
func MACsApart(m *Model, bind map[string]int64) (all, scores map[*Node]int64) {
	if bind == nil {
		bind = map[string]int64{}
	}
	f := infer(m, bind, true)
	all, scores = map[*Node]int64{}, map[*Node]int64{}
	for _, n := range m.Graph.Nodes {
		if m.isLocal(n) && n.Domain != DomainFewbit {
			continue
		}
		if d := f.macs(n); d.N >= 0 {
			all[n] = d.N
		}
		if n.Domain != DomainMS || n.Op != "Attention" && n.Op != "QAttention" {
			continue
		}
		if s, ok := f.fusedAttention(n); ok {
			if d := s.macs(); d.N >= 0 {
				scores[n] = d.N
			}
		}
	}
	return all, scores
}

// macs returns unknownDim for operators without a product, and where a
// dimension is unknown.
func (f *inferrer) macs(n *Node) Dim {
	if n.Domain != DomainONNX && n.Domain != DomainMS && n.Domain != DomainFewbit {
		return unknownDim
	}
	switch n.Op {
	case "Conv", "ConvInteger", "FusedConv":
		return f.convMACs(n, 1)
	case "QLinearConv":
		return f.convMACs(n, 3)
	case "ConvTranspose": // each input element meets out/group * kernel weights
		return times(f.elems(n.In(0)), product(tail(f.in(n, 1).Dims, 1)))
	case "Gemm", "FusedGemm":
		return f.productMACs(n, f.in(n, 0).Dims, n.Int("transA", 0) != 0)
	case "QGemm":
		return f.productMACs(n, f.in(n, 0).Dims, n.Int("transA", 0) != 0)
	case "MatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "MatMulQuantized":
		return f.productMACs(n, f.in(n, 0).Dims, false)
	case "FusedMatMul", "TransposeMatMul":
		a, _ := f.fusedMatMulOperands(n)
		return f.productMACs(n, a, false)
	case "MultiHeadAttention":
		if s, ok := f.multiHead(n); ok {
			return s.macs()
		}
	case "Attention", "QAttention":
		if n.Domain == DomainONNX {
			return f.attentionMACs(n)
		}
		s, ok := f.fusedAttention(n)
		if w := f.in(n, 1).Dims; ok && len(w) == 2 {
			project := product([]Dim{s.batch, s.queries, w[0], w[1]})
			return known(project, s.macs())
		}
	case "LSTM", "GRU", "RNN": // W [dirs, gates*hidden, in] and R [dirs, gates*hidden, hidden] at each step
		x, w, r := f.in(n, 0).Dims, f.in(n, 1).Dims, f.in(n, 2).Dims
		if len(x) == 3 && w != nil && r != nil {
			return times(times(x[0], x[1]), known(product(w), product(r)))
		}
	}
	return unknownDim
}

// known adds two sizes that must both be numbers.
func known(a, b Dim) Dim {
	if a.N < 0 || b.N < 0 {
		return unknownDim
	}
	return plus(a, b)
}

// tail returns dims[k:], or an unknown dimension when there are fewer.
func tail(dims []Dim, k int) []Dim {
	if len(dims) < k {
		return []Dim{unknownDim}
	}
	return dims[k:]
}

func (f *inferrer) elems(name string) Dim {
	if v := f.of(name); v.Dims != nil {
		return product(v.Dims)
	}
	return unknownDim
}

// convMACs: each output element takes in/group * kernel products.
func (f *inferrer) convMACs(n *Node, weight int) Dim {
	return times(f.elems(n.out(0)), product(tail(f.in(n, weight).Dims, 1)))
}

// productMACs: each output element takes the length of A's inner axis.
func (f *inferrer) productMACs(n *Node, a []Dim, transposed bool) Dim {
	if len(a) == 0 {
		return unknownDim
	}
	inner := a[len(a)-1]
	if transposed && len(a) == 2 {
		inner = a[0]
	}
	return times(f.elems(n.out(0)), inner)
}

// macs of the two products: scores = Q*K^T, then scores*V.
func (s attentionSizes) macs() Dim {
	pairs := product([]Dim{s.batch, s.queries, s.keys})
	return known(times(pairs, s.qWidth), times(pairs, s.vWidth))
}

// attentionMACs is Attention-23: rank 3 [B,S,N*H] or rank 4 [B,N,S,H].
func (f *inferrer) attentionMACs(n *Node) Dim {
	q, k, v := f.in(n, 0).Dims, f.in(n, 1).Dims, f.in(n, 2).Dims
	if len(q) != len(k) || len(q) != len(v) || (len(q) == 3 && n.Int("q_num_heads", 0) != n.Int("kv_num_heads", 0)) || n.In(4) != "" {
		return unknownDim
	}
	switch len(q) {
	case 3:
		return attentionSizes{q[0], q[1], k[1], q[2], v[2]}.macs()
	case 4:
		return attentionSizes{q[0], q[2], k[2], times(q[1], q[3]), times(q[1], v[3])}.macs()
	}
	return unknownDim
}
