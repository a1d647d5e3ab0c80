package tflite

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// halves are the values that a Cast makes of float16 constants: the file keeps such constants
// as float16 too.
func halves(g *graph.Graph) map[string]bool {
	half := map[string]bool{}
	for _, n := range g.Nodes {
		if t := g.Init(n.In(0)); n.Is("Cast") && t != nil && t.Type == tensor.Float16 && n.Int("to", 0) == int64(tensor.Float32) && len(n.Outputs) == 1 {
			half[n.Outputs[0]] = true
		}
	}
	return half
}

// asHalf returns v as float16 if nothing is lost: what a pass has changed since is not.
func asHalf(v []float32) ([]uint16, bool) {
	codes := make([]uint16, len(v))
	for i, x := range v {
		if codes[i] = tensor.F32ToF16(x); tensor.F16ToF32(codes[i]) != x {
			return nil, false
		}
	}
	return codes, len(v) > 0
}

// halfConstant makes a float16 constant of that shape, reordered, and what dequantizes it: kernels
// take float, and interpreters that know float16 skip the operator.
func (c *converter) halfConstant(name string, codes []uint16, dims, shape []int32, perm []int) (int32, error) {
	t, err := c.once(name, float16Type, shape, perm, 2*int64(len(codes)), func() (int32, error) {
		return c.add(&tensorDef{name: name, typ: float16Type, shape: shape, data: permute(tensor.From(codes).Data, dims, perm, 2)}), nil
	})
	if err != nil {
		return 0, err
	}
	return c.once(name, float32Type, shape, perm, 0, func() (int32, error) {
		out := c.add(&tensorDef{name: name + "/float", typ: float32Type, shape: shape})
		c.emit(opDequantize, []int32{t}, out, empty(38))
		return out, nil
	})
}
