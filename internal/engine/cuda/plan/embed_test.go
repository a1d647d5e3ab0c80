package plan_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/tensor"
)

// blocks makes the INT4 table NAME of rows x dim, and looks it up by ids.
func (s *small) blocks(name string, rows, dim, block int64, ids, out string, more ...*pb.AttributeProto) *small {
	s.init(name, s.random(tensor.Uint8, rows, dim/2)).f(name+"_s", rows, dim/block)
	attrs := append([]*pb.AttributeProto{attrInt("gather_axis", 0), attrInt("quantize_axis", 1), attrInt("block_size", block), attrInt("bits", 4)}, more...)
	return s.node("com.microsoft:GatherBlockQuantized", fmt.Sprintf("%s %s %s_s", name, ids, name), out, attrs...)
}

// coded makes the INT8 table NAME with a scale for each row, and looks it up by ids.
func (s *small) coded(name string, rows, dim int64, ids, out string) *small {
	return s.init(name, s.random(tensor.Int8, rows, dim)).f(name+"_s", rows, 1).
		node("Gather", name+" "+ids, out+"_q").node("Gather", name+"_s "+ids, out+"_s").
		node("Cast", out+"_q", out+"_f", attrInt("to", int64(tensor.Float32))).node("Mul", out+"_f "+out+"_s", out)
}

// TestEmbeddings: tables in INT4 and INT8, alone and added up, are one step, and
// what ONNX Runtime looks up.
func TestEmbeddings(t *testing.T) {
	e := opstest.Engine(t)
	n := func() *small { return newSmall(17).input("i", s64, 2, 5).input("k", s64, 1, 5) } // ids from -3 to 3
	for name, c := range map[string]struct {
		s    *small
		want string
		bits string
	}{
		"int4":               {n().blocks("w", 7, 64, 32, "i", "y").out("y"), "embed 1", "4"},
		"int4-large-blocks":  {n().blocks("w", 7, 512, 256, "i", "y").out("y"), "embed 1", "4"},
		"int4-twice":         {n().blocks("w", 7, 32, 16, "i", "a").node("Mul", "a a", "y").out("y"), "embed 1, binary 1", "4"},
		"int4-int32-ids":     {newSmall(17).input("i", tensor.Int32, 3).blocks("w", 7, 32, 16, "i", "y").out("y"), "cast 1, embed 1", "4"},
		"int4-fewer-ids":     {n().blocks("w", 9, 64, 32, "i", "a").blocks("p", 6, 64, 16, "k", "b").node("Add", "a b", "y").out("y"), "embed 1", "4 4"},
		"int8-fewer-ids":     {n().coded("w", 9, 20, "i", "a").coded("p", 6, 20, "k", "b").node("Add", "a b", "y").out("y"), "embed 1", "8 8"},
		"int4-int8-float":    {n().blocks("w", 9, 64, 32, "i", "a").coded("v", 5, 64, "i", "b").f("u", 4, 64).node("Gather", "u i", "c").node("Add", "a b", "ab").node("Add", "ab c", "y").out("y"), "embed 1", "4 8 32"},
		"int4-and-positions": {n().blocks("w", 9, 64, 32, "i", "a").f("p", 5, 64).node("Add", "a p", "y").out("y"), "embed 1", "4 32"},
		"int4-constant-ids":  {n().blocks("w", 9, 64, 32, "i", "a").ints("at", 0, 1, 2, 3, 4).blocks("p", 6, 64, 16, "at", "b").node("Add", "a b", "y").out("y"), "embed 1", "4 4"},
		"four-tables": {n().blocks("w", 9, 64, 32, "i", "a").coded("v", 5, 64, "i", "b").f("u", 4, 64).node("Gather", "u i", "c").f("r", 8, 64).node("Gather", "r i", "d").
			node("Add", "a b", "ab").node("Add", "ab c", "abc").node("Add", "abc d", "y").out("y"), "gather 1, embed 1, binary 1", "4 8 32"},
	} {
		t.Run(name, func(t *testing.T) {
			p := compare(t, e, c.s, 1e-6)
			if got := count(p); got != c.want {
				t.Errorf("steps %s, want %s\n%v", got, c.want, p)
			}
			for _, s := range p.Steps {
				if s, ok := s.(*plan.Embed); ok {
					var bits []string
					for _, t := range s.Tables {
						bits = append(bits, fmt.Sprint(t.Bits))
					}
					if got := strings.Join(bits, " "); got != c.bits {
						t.Errorf("tables of %s bits, want %s", got, c.bits)
					}
				}
			}
		})
	}
}

// TestEmbeddingsRefused: a table that no kernel reads is refused, with what is wrong.
func TestEmbeddingsRefused(t *testing.T) {
	n := func() *small { return newSmall(17).input("i", s64, 2, 5) }
	zeros := n().blocks("w", 7, 64, 32, "i", "y").out("y")
	zeros.init("z", zeros.random(tensor.Uint8, 7, 1))
	zeros.m.Graph.Nodes[0].Inputs = append(zeros.m.Graph.Nodes[0].Inputs, "z")
	short := n().blocks("w", 7, 64, 32, "i", "y").out("y")
	short.f("w_s", 7, 1)
	for want, s := range map[string]*small{
		`zero points "z"`:              zeros,
		"blocks of 512 in rows of 512": n().blocks("w", 7, 512, 512, "i", "y").out("y"),
		"its scales are no":            short,
		"ids of dimensions []":         newSmall(17).input("i", s64).blocks("w", 7, 64, 32, "i", "y").out("y"),
		"8 bits":                       n().init("w", n().random(tensor.Uint8, 7, 64)).f("w_s", 7, 2).node("com.microsoft:GatherBlockQuantized", "w i w_s", "y", attrInt("block_size", 32), attrInt("bits", 8)).out("y"),
		"its table is no constant":     n().input("w", tensor.Uint8, 7, 32).f("w_s", 7, 2).node("com.microsoft:GatherBlockQuantized", "w i w_s", "y", attrInt("block_size", 32)).out("y"),
	} {
		src, err := plan.New(s.m)
		if err == nil {
			_, err = src.Plan(dimsOf(s.feeds), plan.Options{})
		}
		if !errors.Is(err, plan.ErrUnsupported) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `com.microsoft.GatherBlockQuantized "y"`) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
