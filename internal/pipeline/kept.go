package pipeline

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// keptMark opens every file; another number means other contents.
	keptMark = "fewbit.weight/1\n"
	// keptBytes bounds all files together; those that were not read for longest go first.
	keptBytes = 1 << 30
	// keptHead is what stands before the codes: mark, key, seconds, two errors, number of scales.
	keptHead = len(keptMark) + sha256.Size + 3*8 + 4
	// keptPart begins the name of a file that is being written.
	keptPart = ".part-"
)

// kept holds solved weights on disk, one file each, named by a digest of all that
// they were solved from. A file appears whole under its name, or not at all; one that
// is not what its name says is removed. The folder belongs to one process at a time:
// the search that holds the lock of its journal. Weights that cannot be written are
// solved again another time, no more; a nil kept holds nothing.
type kept struct {
	dir  string
	most int64 // bytes
	base string
	warn func(string)
	off  bool // the disk does not take more
	// Hits and Saved say how many weights were read, and the seconds that finding them
	// took once.
	Hits  int
	Saved float64
}

// openKept opens the folder, which need not be there. base is a digest of what all
// weights in it depend on; with fresh what lies there is removed.
func openKept(dir, base string, fresh bool, warn func(string)) (*kept, error) {
	k := &kept{dir: dir, most: keptBytes, base: base, warn: warn}
	if fresh {
		if err := k.remove(); err != nil {
			return nil, err
		}
	}
	parts, _ := filepath.Glob(filepath.Join(dir, keptPart+"*")) // of processes that were killed
	for _, p := range parts {
		_ = os.Remove(p) // it is in nobody's way
	}
	return k, nil
}

// remove removes all weights, and the folder unless something else lies there.
func (k *kept) remove() error {
	if k == nil {
		return nil
	}
	files, err := k.files()
	for _, f := range files {
		err = errors.Join(err, os.Remove(filepath.Join(k.dir, f.Name())))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(k.dir), bare.Error(err))
	}
	_ = os.Remove(k.dir) // it may hold what is not ours, or not be there
	return nil
}

// files lists the weights in the folder: what has such a name.
func (k *kept) files() (own []os.DirEntry, err error) {
	list, err := os.ReadDir(k.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, d := range list {
		if b, err := hex.DecodeString(d.Name()); err == nil && len(b) == sha256.Size && d.Type().IsRegular() {
			own = append(own, d)
		}
	}
	return own, nil
}

// entry is one solved weight: one of the two.
type entry struct {
	eight    *quant.Weight
	four     *quant.BlockWeight
	divisors []float32 // of its input, by AWQ; nil is none
	gain     quant.Gain
	seconds  float64
}

// want is what is looked for: the key, and the sizes that a file must have, so that
// none is believed about them.
type want struct {
	key    digest
	eight  bool
	dims   []int64 // of 8-bit codes
	axis   int
	one    bool // scale in all
	k, n   int  // of 4-bit codes
	codes  int
	scales int
	// divisors may lie behind the scales, so many; all of them are 0 for none.
	divisors int
}

// keeping keeps the weights of one prepared model, whose values have digests.
type keeping struct {
	*kept
	values *digests
}

// want says what the weight of op depends on and looks like; with are the operators
// that are solved for together with it, for one input.
func (k *keeping) want(g *graph.Graph, p *quant.Plan, op *quant.Op, choices quant.Choices, with ...*quant.Op) (want, error) {
	smooth := p.Smoothing(op, choices)
	x, err := k.values.of(op.X[0])
	if err != nil {
		return want{}, err
	}
	w, err := k.values.of(op.W)
	if err != nil {
		return want{}, err
	}
	c, t := p.Config, g.Init(op.W)
	h := sha256.New()
	fmt.Fprintf(h, "%s%s %x %x\n%d %d %d %v %s %s %v %v\n", keptMark, k.base, x, w, op.Kind, op.InAxis, op.OutAxis, t.Dims, p.Solves(), c.Granularity, c.ReduceRange, c.NoBiasCorrection)
	if op.Kind == quant.Conv { // which patches its kernel sees
		for _, name := range []string{"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"} {
			a := op.Node.Attr(name)
			fmt.Fprintf(h, "%s %d %q %d\n", name, a.GetI(), a.GetS(), a.GetInts())
		}
	}
	if c.Steps() {
		fmt.Fprintln(h, "steps")
	}
	fmt.Fprintf(h, "smooth %d\n", len(smooth))
	h.Write(floatBytes(smooth))
	for _, o := range with {
		d, err := k.values.of(o.W)
		if err != nil {
			return want{}, err
		}
		fmt.Fprintf(h, "with %x %v %d\n", d, g.Init(o.W).Dims, o.OutAxis)
	}
	out := want{key: digest(h.Sum(nil)), eight: c.Scheme != quant.INT4, dims: t.Dims, axis: op.OutAxis}
	if out.eight {
		out.codes, out.scales = int(t.Len()), int(t.Dims[op.OutAxis])
		if out.one = c.Granularity == quant.PerTensor; out.one {
			out.scales = 1
		}
		return out, nil
	}
	out.k, out.n = op.Matrix(t.Dims)
	blocks := (&quant.BlockWeight{K: out.k}).Blocks()
	out.codes, out.scales = out.n*blocks*quant.Int4Block/2, out.n*blocks
	if p.Solves() == quant.AWQ {
		out.divisors = out.k
	}
	return out, nil
}

func (w want) size() int64 {
	return int64(keptHead) + int64(w.codes) + perFloat*int64(w.scales+w.divisors) + sha256.Size
}

func (k *kept) path(w want) string { return filepath.Join(k.dir, hex.EncodeToString(w.key[:])) }

// get returns the weight when it is there and whole.
func (k *kept) get(w want) (entry, bool) {
	path := k.path(w)
	st, err := os.Stat(path)
	if err != nil {
		return entry{}, false
	}
	var b []byte
	if st.Mode().IsRegular() && st.Size() == w.size() {
		b, err = os.ReadFile(path)
	}
	e, ok := decodeKept(b, w)
	if !ok {
		if os.Remove(path); err == nil {
			k.warn("a solved weight on disk was damaged: it is solved again")
		}
		return entry{}, false
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // who is read stays longest; without it the oldest goes
	k.Hits++
	k.Saved += e.seconds
	return e, true
}

// put keeps a weight. What stands against it is a warning, once.
func (k *kept) put(w want, e entry) {
	if k.off || w.size() > k.most || !(e.gain.Solved+e.gain.Nearest <= math.MaxFloat64) {
		return
	}
	if err := k.write(w, e); err != nil {
		k.off = true
		k.warn(fmt.Sprintf("solved weights are not kept for the next start: %v", bare.Error(err)))
	}
}

func (k *kept) write(w want, e entry) error {
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return err
	}
	if err := k.room(w.size()); err != nil {
		return err
	}
	f := atomicfile.File{Path: k.path(w), Temp: keptPart + "*"}
	return f.WriteBytes(encodeKept(w, e))
}

// room removes the files that were not used for longest until size more fit.
func (k *kept) room(size int64) error {
	files, err := k.files()
	if err != nil {
		return err
	}
	var all []os.FileInfo
	for _, d := range files {
		if st, err := d.Info(); err == nil {
			all = append(all, st)
			size += st.Size()
		}
	}
	slices.SortFunc(all, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range all {
		if size <= k.most {
			return nil
		}
		if err := os.Remove(filepath.Join(k.dir, f.Name())); err != nil {
			return err
		}
		size -= f.Size()
	}
	return nil
}

// encodeKept writes, little-endian: the mark, the key, the seconds and both errors as
// float64, the number of scales, codes, scales and divisors as float32, and SHA-256 of
// all that.
func encodeKept(w want, e entry) []byte {
	b := make([]byte, 0, w.size())
	b = append(append(b, keptMark...), w.key[:]...)
	for _, v := range []float64{e.seconds, e.gain.Solved, e.gain.Nearest} {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(w.scales))
	if w.eight {
		b = append(append(b, tensor.From(e.eight.Codes).Data...), floatBytes(e.eight.Scales)...)
	} else {
		b = append(append(b, e.four.Codes...), floatBytes(e.four.Scales)...)
	}
	if w.divisors > 0 {
		d := e.divisors
		if d == nil {
			d = make([]float32, w.divisors)
		}
		b = append(b, floatBytes(d)...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeKept reads the weight that w describes; ok is false when b is anything else.
func decodeKept(b []byte, w want) (e entry, ok bool) {
	if int64(len(b)) != w.size() {
		return e, false
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) || !bytes.HasPrefix(body, []byte(keptMark)) || !bytes.Equal(body[len(keptMark):][:sha256.Size], w.key[:]) {
		return e, false
	}
	at := body[len(keptMark)+sha256.Size:]
	for _, v := range []*float64{&e.seconds, &e.gain.Solved, &e.gain.Nearest} {
		*v, at = math.Float64frombits(binary.LittleEndian.Uint64(at)), at[8:]
		if !(*v >= 0 && *v <= math.MaxFloat64) {
			return e, false
		}
	}
	if binary.LittleEndian.Uint32(at) != uint32(w.scales) {
		return e, false
	}
	codes, at := at[4:4+w.codes], at[4+w.codes:]
	floats := make([]float32, w.scales+w.divisors)
	for i := range floats {
		floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(at[perFloat*i:]))
		if !(math.Abs(float64(floats[i])) <= math.MaxFloat32) {
			return e, false
		}
	}
	scales, divisors := floats[:w.scales:w.scales], floats[w.scales:]
	if slices.ContainsFunc(divisors, func(d float32) bool { return math.Float32bits(d) != 0 }) {
		if slices.ContainsFunc(divisors, func(d float32) bool { return d <= 0 }) {
			return e, false
		}
		e.divisors = divisors
	}
	if w.eight {
		e.eight = &quant.Weight{Codes: make([]int8, w.codes), Dims: w.dims, Scales: scales, Axis: w.axis}
		copy(tensor.From(e.eight.Codes).Data, codes)
	} else {
		e.four = &quant.BlockWeight{K: w.k, N: w.n, Codes: slices.Clone(codes), Scales: scales}
	}
	return e, true
}

func floatBytes(v []float32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}
