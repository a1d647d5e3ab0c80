package plan

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// String is the plan's stable text form: one line for each input, output,
// buffer and step. Equal models and options give equal text.
func (p *Plan) String() string {
	var b strings.Builder
	_ = p.WriteText(&b) // a strings.Builder does not fail
	return b.String()
}

// WriteText writes the plan's text form. Refs are bN or bN+OFFSET.
//
//	nodes 96 folded 22
//	arena 66048
//	input input_ids INT64[2,8] b1
//	b1 arena 0 128 steps -1..0 "input_ids"
//	b2 weight 4096 "word_embeddingsFP32[64 16]"
//	0 fb_embed Tokens=16 Dim=16 ...
func (p *Plan) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "nodes %d folded %d\narena %d\n", p.Nodes, p.Folded, p.Arena)
	bind := func(what string, list []Binding) {
		for _, x := range list {
			fmt.Fprintf(&b, "%s %s %v%s %v\n", what, x.Name, x.Type, numbers(x.Dims), x.Ref)
		}
	}
	bind("input", p.Inputs)
	bind("output", p.Outputs)
	if p.Fault != (Ref{}) {
		fmt.Fprintf(&b, "fault %v\n", p.Fault)
	}
	for i, x := range p.Buffers {
		switch x.Kind {
		case Arena:
			fmt.Fprintf(&b, "b%d arena %d %d steps %d..%d %s\n", i, x.Offset, x.Bytes, x.First, x.Last, quote(x.Name))
		case Weight:
			fmt.Fprintf(&b, "b%d weight %d %s\n", i, x.Bytes, quote(x.Key))
		case Workspace:
			fmt.Fprintf(&b, "b%d workspace %d %s\n", i, x.Bytes, quote(x.Key))
		case Staging:
			fmt.Fprintf(&b, "b%d staging %d %s\n", i, x.Bytes, quote(x.Key))
		}
	}
	for i, s := range p.Init {
		fmt.Fprintf(&b, "init %d %s\n", i, Text(s))
	}
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%d %s\n", i, Text(s))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Text is a step's line of the text form: its entry and what is not zero.
func Text(s Step) string { return s.Entry() + structText(reflect.ValueOf(s).Elem()) }

func structText(v reflect.Value) string {
	var b strings.Builder
	t := v.Type()
	for i := range t.NumField() {
		f := v.Field(i)
		switch x := f.Interface().(type) {
		case Ref:
			if x != (Ref{}) {
				fmt.Fprintf(&b, " %s=%v", t.Field(i).Name, x)
			}
		case View:
			fmt.Fprintf(&b, " %s=%s/%s", t.Field(i).Name, numbers(x.Dims), numbers(x.Strides))
		default:
			switch {
			case t.Field(i).Anonymous:
				b.WriteString(structText(f))
			case f.Kind() == reflect.Slice:
				for k := range f.Len() {
					fmt.Fprintf(&b, " {%s}", strings.TrimSpace(structText(f.Index(k))))
				}
			case !f.IsZero():
				fmt.Fprintf(&b, " %s=%v", t.Field(i).Name, x)
			}
		}
	}
	return b.String()
}

// String returns bN or bN+OFFSET.
func (r Ref) String() string {
	if r.Offset == 0 {
		return "b" + strconv.Itoa(r.Buf)
	}
	return fmt.Sprintf("b%d+%d", r.Buf, r.Offset)
}

// String returns the type's name.
func (t Type) String() string {
	return [...]string{"F32", "F16", "BF16", "S8", "U8", "S32", "S64", "U32", "Bool"}[t]
}

// String returns the activation's name.
func (a Act) String() string {
	return [...]string{"none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "clip"}[a]
}

func numbers(v []int64) string { return strings.ReplaceAll(fmt.Sprint(v), " ", ",") }

// quote keeps the separators of made-up names readable.
func quote(s string) string { return strconv.Quote(strings.ReplaceAll(s, "\x00", ":")) }
