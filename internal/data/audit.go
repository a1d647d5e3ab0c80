package data

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Errors of an audit.
var (
	// ErrNotFinite: an input has nothing but NaN and infinities.
	ErrNotFinite = errors.New("data is not finite")
	// ErrConstant: an input has the same value everywhere, in all samples.
	ErrConstant = errors.New("data is constant")
)

// Audit looks at samples as they pass and says what is wrong with them as a
// set. It keeps 16 bytes a sample and reads nothing twice.
type Audit struct {
	Samples    int
	Duplicates int   // samples whose inputs equal those of an earlier one
	NaN, Inf   int64 // elements of all floating-point inputs

	inputs map[string]*inputAudit
	seen   map[[16]byte]struct{}
}

type inputAudit struct {
	finite   bool // a finite element was met
	varies   bool
	value    uint32 // the bits of the first element
	elements int64
}

// Add looks at one sample.
func (a *Audit) Add(s Sample) {
	if a.inputs == nil {
		a.inputs = map[string]*inputAudit{}
		a.seen = map[[16]byte]struct{}{}
	}
	a.Samples++
	key := hashFeeds(s.Feeds)
	if _, ok := a.seen[key]; ok {
		a.Duplicates++
	}
	a.seen[key] = struct{}{}
	for name, t := range s.Feeds {
		if !t.Type.IsFloat() {
			continue // ids and masks are constant or sparse by nature
		}
		in := a.inputs[name]
		if in == nil {
			in = &inputAudit{}
			a.inputs[name] = in
		}
		v, err := t.F32()
		if err != nil {
			continue
		}
		for _, x := range v {
			if in.elements == 0 {
				in.value = math.Float32bits(x)
			}
			in.elements++
			switch {
			case x != x:
				a.NaN++
			case math.IsInf(float64(x), 0):
				a.Inf++
			default:
				in.finite = true
			}
			if math.Float32bits(x) != in.value {
				in.varies = true
			}
		}
	}
}

// hashFeeds identifies the contents of feeds.
func hashFeeds(f engine.Feeds) [16]byte {
	names := make([]string, 0, len(f))
	for n := range f {
		names = append(names, n)
	}
	sort.Strings(names)
	h := sha256.New()
	var n [8]byte
	for _, name := range names {
		t := f[name]
		binary.LittleEndian.PutUint64(n[:], uint64(len(name)))
		h.Write(n[:])
		h.Write([]byte(name))
		for _, d := range t.Dims {
			binary.LittleEndian.PutUint64(n[:], uint64(d))
			h.Write(n[:])
		}
		h.Write(t.Data)
		if t.Type == tensor.String {
			for _, s := range t.Strings {
				binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
				h.Write(n[:])
				h.Write(s)
			}
		}
	}
	return [16]byte(h.Sum(nil))
}

// Err returns ErrEmpty, ErrNotFinite or ErrConstant when nothing can be
// learned from the samples: there are none, or an input never had a finite
// value, or never any second value.
func (a *Audit) Err() error {
	if a.Samples == 0 {
		return fmt.Errorf("%w: no samples were read", ErrEmpty)
	}
	names := make([]string, 0, len(a.inputs))
	for n := range a.inputs {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, name := range names {
		in := a.inputs[name]
		switch {
		case in.elements == 0:
			return fmt.Errorf("%w: input %q has no elements", ErrEmpty, name)
		case !in.finite:
			return fmt.Errorf("%w: all %d values of input %q are NaN or infinite; look at how the data was made", ErrNotFinite, in.elements, name)
		case !in.varies:
			return fmt.Errorf("%w: all %d values of input %q are %v; look at how the data was made", ErrConstant, in.elements, name, math.Float32frombits(in.value))
		}
	}
	return nil
}
