package plan

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
)

// operand is one memory argument of a step.
type operand struct {
	ref      *Ref
	write    bool
	optional bool
}

// operands lists a step's memory arguments in the order of its fields.
func operands(s Step) []operand { return fields(reflect.ValueOf(s).Elem(), nil) }

func fields(v reflect.Value, list []operand) []operand {
	t := v.Type()
	for i := range t.NumField() {
		switch f := v.Field(i); {
		case t.Field(i).Tag.Get("io") != "":
			tag := t.Field(i).Tag.Get("io")
			list = append(list, operand{f.Addr().Interface().(*Ref), tag[0] == 'w', tag == "w?"})
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
			for k := range f.Len() {
				list = fields(f.Index(k), list)
			}
		}
	}
	return list
}

// finish drops what nothing reads and places the rest in the arena.
func (b *builder) finish() error {
	p := b.plan
	b.dropUnread()
	b.compact()
	var weights int64
	for _, x := range p.Buffers {
		if x.Kind == Weight || x.Kind == Staging {
			if weights += x.Bytes; weights > MaxWeights {
				return fmt.Errorf("%w: more than %d bytes of weights", ErrLimit, int64(MaxWeights))
			}
		}
	}
	lifetimes(p, b.o.KeepInputs)
	return place(p, b.o.MaxArena)
}

// dropUnread removes steps whose results nothing reads, last first, and makes
// optional results that nothing reads NULL.
func (b *builder) dropUnread() {
	p := b.plan
	read := map[int]bool{}
	for _, o := range p.Outputs {
		read[o.Ref.Buf] = true
	}
	kept := p.Steps[:0:0]
	for i := len(p.Steps) - 1; i >= 0; i-- {
		ops := operands(p.Steps[i])
		live := false
		for _, o := range ops {
			if o.write && read[o.ref.Buf] {
				live = true
			}
		}
		if !live {
			continue
		}
		for _, o := range ops {
			if o.write && o.optional && !read[o.ref.Buf] {
				*o.ref = Ref{}
			}
			if !o.write && *o.ref != (Ref{}) {
				read[o.ref.Buf] = true
			}
		}
		kept = append(kept, p.Steps[i])
	}
	slices.Reverse(kept)
	p.Steps = kept
	staged := map[int]bool{}
	init := p.Init[:0:0]
	for _, s := range p.Init {
		live := false
		for _, o := range operands(s) {
			live = live || (o.write && read[o.ref.Buf])
		}
		if live {
			init = append(init, s)
			for _, o := range operands(s) {
				if !o.write {
					staged[o.ref.Buf] = true
				}
			}
		}
	}
	p.Init = init
	for i := range p.Buffers {
		if staged[i] && !read[i] {
			p.Buffers[i].Kind = Staging
		}
	}
}

// compact numbers the buffers that are left, in order of first use.
func (b *builder) compact() {
	p := b.plan
	to := map[int]int{0: 0}
	buffers := p.Buffers[:1:1]
	renumber := func(r *Ref) {
		if r.Buf == 0 {
			return
		}
		n, ok := to[r.Buf]
		if !ok {
			n = len(buffers)
			to[r.Buf] = n
			buffers = append(buffers, p.Buffers[r.Buf])
		}
		r.Buf = n
	}
	for i := range p.Inputs {
		renumber(&p.Inputs[i].Ref)
	}
	faults := false
	for _, list := range [][]Step{p.Init, p.Steps} {
		for _, s := range list {
			for _, o := range operands(s) {
				faults = faults || (p.Fault.Buf != 0 && *o.ref == p.Fault)
			}
		}
	}
	if !faults {
		p.Fault = Ref{}
	}
	renumber(&p.Fault)
	for _, list := range [][]Step{p.Init, p.Steps} {
		for _, s := range list {
			for _, o := range operands(s) {
				renumber(o.ref)
			}
		}
	}
	for i := range p.Outputs {
		renumber(&p.Outputs[i].Ref)
	}
	p.Buffers = buffers
}

// lifetimes sets the first and last step that touch each arena buffer.
func lifetimes(p *Plan, keepInputs bool) {
	for i := range p.Buffers {
		p.Buffers[i].First, p.Buffers[i].Last = len(p.Steps), -1
	}
	touch := func(buf, at int) {
		x := &p.Buffers[buf]
		x.First, x.Last = min(x.First, at), max(x.Last, at)
	}
	for _, in := range p.Inputs {
		touch(in.Ref.Buf, -1)
		if keepInputs {
			touch(in.Ref.Buf, len(p.Steps))
		}
	}
	if p.Fault.Buf != 0 {
		touch(p.Fault.Buf, -1)
		touch(p.Fault.Buf, len(p.Steps))
	}
	for i, s := range p.Steps {
		for _, o := range operands(s) {
			touch(o.ref.Buf, i)
		}
	}
	for _, out := range p.Outputs {
		touch(out.Ref.Buf, len(p.Steps))
	}
}

// place gives arena buffers offsets so that those alive at the same step do not
// overlap: largest first, each into the smallest gap that holds it (greedy by
// size, Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural
// Net Inference").
func place(p *Plan, limit int64) error {
	var order []int
	for i, x := range p.Buffers {
		if x.Kind == Arena {
			if x.Bytes > limit {
				return fmt.Errorf("%w: %q needs %d bytes, the arena may have %d", ErrLimit, x.Name, x.Bytes, limit)
			}
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(p.Buffers[j].Bytes, p.Buffers[i].Bytes) })
	var placed []int // by offset
	for _, i := range order {
		x := &p.Buffers[i]
		size := (x.Bytes + Align - 1) / Align * Align
		var end, at int64 // end of what is placed so far; the best gap
		at = -1
		best := int64(1)<<62 - 1
		for _, j := range placed {
			y := &p.Buffers[j]
			if y.First > x.Last || x.First > y.Last {
				continue
			}
			if gap := y.Offset - end; gap >= size && gap < best {
				at, best = end, gap
			}
			end = max(end, y.Offset+(y.Bytes+Align-1)/Align*Align)
		}
		if at < 0 {
			at = end
		}
		x.Offset = at
		if p.Arena = max(p.Arena, at+size); p.Arena > limit {
			return fmt.Errorf("%w: the arena needs more than %d bytes", ErrLimit, limit)
		}
		k, _ := slices.BinarySearchFunc(placed, at, func(j int, off int64) int { return cmp.Compare(p.Buffers[j].Offset, off) })
		placed = slices.Insert(placed, k, i)
	}
	return nil
}
