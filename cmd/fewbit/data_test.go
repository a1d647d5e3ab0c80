package main

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// array is one .npy: float32 or int64 values.
type array struct {
	name string
	dims []int
	f    []float32
	i    []int64
}

// dataKinds are what the script command mkdata writes.
var dataKinds = map[string]func() []array{
	"mlp":         func() []array { x, _ := mlpSamples(200); return []array{x} },
	"mlp-labels":  func() []array { x, l := mlpSamples(200); return []array{x, l} },
	"mlp-ten":     func() []array { x, _ := mlpSamples(10); return []array{x} },
	"wide":        func() []array { return []array{normal("x", 200, 1024)} },
	"deep":        func() []array { return []array{normal("x", 120, 1024)} },
	"cnn":         func() []array { return []array{normal("image", 80, 3, cnnSize, cnnSize)} },
	"wrong-names": func() []array { return []array{normal("y", 4, mlpIn), normal("z", 4, mlpIn)} },
	"wrong-rank":  func() []array { return []array{normal("x", 4, 2, mlpIn)} },
	"wrong-size":  func() []array { return []array{normal("x", 4, mlpIn+1)} },
	"wrong-type":  func() []array { return []array{{name: "x", dims: []int{4, mlpIn}, i: make([]int64, 4*mlpIn)}} },
	"none":        func() []array { return []array{{name: "x", dims: []int{0, mlpIn}, f: []float32{}}} },
	"nan":         func() []array { return []array{constant(float32(math.NaN()))} },
	"constant":    func() []array { return []array{constant(1)} },
	"nhwc":        func() []array { return []array{normal("image", 4, cnnSize, cnnSize, 3)} },
	"some-nan": func() []array {
		x, _ := mlpSamples(40)
		x.f[3], x.f[70] = float32(math.NaN()), float32(math.Inf(1))
		return []array{x}
	},
	"twice": func() []array {
		x, _ := mlpSamples(40)
		copy(x.f[mlpIn:], x.f[:mlpIn])
		return []array{x}
	},
}

func constant(v float32) array {
	a := array{name: "x", dims: []int{4, mlpIn}, f: make([]float32, 4*mlpIn)}
	for i := range a.f {
		a.f[i] = v
	}
	return a
}

func normal(name string, dims ...int) array {
	rng := rand.New(rand.NewPCG(uint64(len(name)), 3))
	n := 1
	for _, d := range dims {
		n *= d
	}
	a := array{name: name, dims: dims, f: make([]float32, n)}
	for i := range a.f {
		a.f[i] = float32(rng.NormFloat64())
	}
	return a
}

// mlpSamples returns inputs of the MLP and, as labels, its own answers with
// every tenth one wrong.
func mlpSamples(n int) (x, label array) {
	x = normal("x", n, mlpIn)
	label = array{name: "label", dims: []int{n}, i: make([]int64, n)}
	g := mlp().Graph
	for s := range n {
		h := layer(g, x.f[s*mlpIn:(s+1)*mlpIn], "w1", "b1")
		h = layer(g, h, "w2", "b2")
		best := 0
		logits := layer(g, h, "w3", "")
		for c, v := range logits {
			if v > logits[best] {
				best = c
			}
		}
		if s%10 == 9 {
			best = (best + 1) % mlpOut
		}
		label.i[s] = int64(best)
	}
	return x, label
}

// layer is relu(x w + b), without relu and b for the last one.
func layer(g *graph.Graph, x []float32, w, b string) []float32 {
	t := g.Init(w)
	wv, n := tensor.View[float32](t), int(t.Dims[1])
	y := make([]float32, n)
	for o := range y {
		var sum float32
		for i, v := range x {
			sum += v * wv[i*n+o]
		}
		if b != "" {
			sum = max(0, sum+tensor.View[float32](g.Init(b))[o])
		}
		y[o] = sum
	}
	return y
}

func (a array) npy() []byte {
	dims := make([]string, len(a.dims))
	for i, d := range a.dims {
		dims[i] = fmt.Sprint(d)
	}
	descr := "<f4"
	if a.i != nil {
		descr = "<i8"
	}
	h := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s,), }", descr, strings.Join(dims, ", "))
	h += strings.Repeat(" ", 63-(10+len(h))%64) + "\n"
	var b bytes.Buffer
	b.WriteString("\x93NUMPY\x01\x00")
	b.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(h))))
	b.WriteString(h)
	if a.i != nil {
		binary.Write(&b, binary.LittleEndian, a.i)
	} else {
		binary.Write(&b, binary.LittleEndian, a.f)
	}
	return b.Bytes()
}

func writeNPZ(path string, arrays []array) error {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, a := range arrays {
		w, err := z.CreateHeader(&zip.FileHeader{Name: a.name + ".npy", Method: zip.Store})
		if err != nil {
			return err
		}
		if _, err := w.Write(a.npy()); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
