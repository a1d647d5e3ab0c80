package data

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	"github.com/klauspost/compress/zip"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/task"
	"github.com/fewbit/fewbit/internal/tensor"
)

// labelArrays are the names under which an .npz may hold the classes.
var labelArrays = []string{"label", "labels"}

// maxClass bounds class numbers in data files.
const maxClass = 1<<31 - 1

// arrays is the source of .npz and .npy files.
type arrays struct {
	form   string
	file   io.Closer
	inputs []boundInput
	label  *column
	n      int
	names  []string

	mask string // the input whose padding is cut off, or ""
	buf  []byte // one row before conversion
}

// boundInput is a model input and the array that fills it.
type boundInput struct {
	io      engine.IO
	col     *column
	convert converter // nil: the bytes are right as they are
}

var _ source = (*arrays)(nil)

func openNPY(f file, size int64, name string, o Options) (source, error) {
	c, err := npyColumn(f, 0, size, strings.TrimSuffix(name, ".npy"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(o.Spec.Inputs) != 1 {
		return nil, fmt.Errorf("%s: %w: an .npy is one array, the model has the inputs %s; save an .npz with one array for each", name, ErrMismatch, inputNames(o.Spec))
	}
	c.name = o.Spec.Inputs[0].Name
	return bindArrays(f, kindNPY, map[string]*column{c.name: c}, name, o)
}

func openNPZ(f file, z *zip.Reader, name string, o Options) (source, error) {
	cols := map[string]*column{}
	wanted := map[string]bool{}
	for _, in := range o.Spec.Inputs {
		wanted[in.Name] = true
	}
	for _, l := range labelArrays {
		wanted[l] = true
	}
	var names []string
	closeAll := func() {
		for _, c := range cols {
			c.close()
		}
	}
	entries := map[string]*zip.File{}
	for _, e := range z.File {
		key, ok := strings.CutSuffix(e.Name, ".npy")
		if !ok {
			continue
		}
		if entries[key] != nil {
			return nil, fmt.Errorf("%s: %w: two arrays are called %.40q", name, ErrFormat, key)
		}
		entries[key] = e
		names = append(names, key)
	}
	sort.Strings(names)
	// np.savez(file, x) calls its only array arr_0.
	if e := entries["arr_0"]; e != nil && len(o.Spec.Inputs) == 1 && entries[o.Spec.Inputs[0].Name] == nil && countUnlabelled(names) == 1 {
		entries[o.Spec.Inputs[0].Name] = e
		delete(entries, "arr_0")
	}
	for key, e := range entries {
		if !wanted[key] {
			continue // an array for other models
		}
		c, err := zipColumn(f, e, key)
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("%s: array %.40q: %w", name, key, err)
		}
		cols[key] = c
	}
	for _, in := range o.Spec.Inputs {
		if cols[in.Name] == nil {
			closeAll()
			return nil, fmt.Errorf("%s: %w: no array for the model's input %q; expected the arrays %s, got %s", name, ErrMismatch, in.Name, inputNames(o.Spec), nameList(names))
		}
	}
	src, err := bindArrays(f, kindNPZ, cols, name, o)
	if err != nil {
		closeAll()
		return nil, err
	}
	return src, nil
}

func countUnlabelled(names []string) int {
	n := 0
	for _, s := range names {
		if !slices.Contains(labelArrays, s) {
			n++
		}
	}
	return n
}

// maxListed bounds the names in an error.
const maxListed = 12

func nameList(names []string) string {
	if len(names) > maxListed {
		return strings.Join(names[:maxListed], ", ") + fmt.Sprintf(" and %d more", len(names)-maxListed)
	}
	return strings.Join(names, ", ")
}

func inputNames(spec engine.IOSpec) string {
	var s []string
	for _, in := range spec.Inputs {
		s = append(s, in.Name)
	}
	return nameList(s)
}

// bindArrays checks every array against its input.
func bindArrays(f io.Closer, form string, cols map[string]*column, file string, o Options) (source, error) {
	a := &arrays{form: form, file: f, n: -1}
	first := ""
	rows := func(c *column) error {
		if a.n >= 0 && c.rows() != a.n {
			return fmt.Errorf("%s: %w: array %q has %d samples, %q has %d; the first axes must be equal", file, ErrMismatch, c.name, c.rows(), first, a.n)
		}
		if a.n < 0 {
			a.n, first = c.rows(), c.name
		}
		return nil
	}
	for _, in := range o.Spec.Inputs {
		c := cols[in.Name]
		if c.rows() == 0 {
			return nil, fmt.Errorf("%w: %s: array %q has shape %v", ErrEmpty, file, in.Name, c.dims)
		}
		if err := checkShape(in, c.dims); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		conv, ok := conversion(c.dtype, in.Type)
		if !ok {
			hint := ""
			if isInteger(c.dtype) && isFloat(in.Type) {
				hint = "; the scale of integers is unknown here: save them as float32, normalised as the model was trained"
			}
			return nil, fmt.Errorf("%s: %w: array %q has type %v, the model's input expects %v%s", file, ErrMismatch, in.Name, c.dtype, in.Type, hint)
		}
		if err := rows(c); err != nil {
			return nil, err
		}
		a.inputs = append(a.inputs, boundInput{io: in, col: c, convert: conv})
	}
	var err error
	if a.names, err = modelLabels(o); err != nil {
		return nil, err
	}
	for _, l := range labelArrays {
		c := cols[l]
		if c == nil || a.isInput(l) {
			continue
		}
		if c.rowLen != 1 || !isInteger(c.dtype) {
			return nil, fmt.Errorf("%s: %w: array %q is %v, expected one integer a sample ([n], INT64)", file, ErrLabel, l, c)
		}
		if err := rows(c); err != nil {
			return nil, err
		}
		a.label = c
		break
	}
	if !o.KeepPadding {
		a.bindMask(o.Spec)
	}
	return a, nil
}

func (a *arrays) isInput(name string) bool {
	for _, in := range a.inputs {
		if in.io.Name == name {
			return true
		}
	}
	return false
}

// bindMask marks the inputs that are cut with the attention mask: those of
// rank 2 whose second axis is variable and as long as the mask's.
func (a *arrays) bindMask(spec engine.IOSpec) {
	in, err := task.FindTextInputs(spec)
	if err != nil || in.Mask == "" {
		return
	}
	for i := range a.inputs {
		b := &a.inputs[i]
		if b.io.Dims[1] >= 0 || b.col.dims[1] != a.inputs[0].col.dims[1] {
			return // a fixed length must be kept, for all
		}
	}
	a.mask = in.Mask
}

// checkShape compares an array of shape dims, whose first axis are the
// samples, with the input.
func checkShape(in engine.IO, dims []int64) error {
	want := slices.Clone(in.Dims)
	if len(dims) == len(want) {
		fits := true
		for i := 1; i < len(want); i++ {
			fits = fits && (want[i] < 0 && dims[i] > 0 || want[i] == dims[i])
		}
		if fits {
			return nil
		}
		msg := fmt.Sprintf("array %q has shape %s, the model's input expects %s", in.Name, shapeText(dims, true), shapeText(want, false))
		if layout, other := imageLayout(in); layout != "" && len(dims) == 4 {
			nhwc := dims[3] == channels(in) && dims[1] != channels(in)
			nchw := dims[1] == channels(in) && dims[3] != channels(in)
			if layout == "NCHW" && nhwc {
				msg = fmt.Sprintf("array %q: shape %s looks like NHWC; the model wants %s (%s): save x.transpose(0, 3, 1, 2)", in.Name, shapeText(dims, true), shapeText(want, false), layout)
			}
			if layout == "NHWC" && nchw {
				msg = fmt.Sprintf("array %q: shape %s looks like %s; the model wants %s (%s): save x.transpose(0, 2, 3, 1)", in.Name, shapeText(dims, true), other, shapeText(want, false), layout)
			}
		}
		return fmt.Errorf("%w: %s", ErrMismatch, msg)
	}
	hint := ""
	if len(dims) == len(want)-1 {
		hint = "; the first axis must be the samples: save x[None] for a single sample"
	}
	return fmt.Errorf("%w: array %q has shape %s (rank %d), the model's input expects %s (rank %d)%s", ErrMismatch, in.Name, shapeText(dims, true), len(dims), shapeText(want, false), len(want), hint)
}

// shapeText words a shape with its first axis as n, and variable ones as "any".
func shapeText(dims []int64, given bool) string {
	s := make([]string, len(dims))
	for i, d := range dims {
		switch {
		case i == 0 && !given:
			s[i] = "n"
		case d < 0:
			s[i] = "any"
		default:
			s[i] = fmt.Sprint(d)
		}
	}
	return "[" + strings.Join(s, ", ") + "]"
}

// imageLayout returns the layout of an image input and the other one, or "".
func imageLayout(in engine.IO) (layout, other string) {
	if len(in.Dims) != 4 {
		return "", ""
	}
	image := func(d int64) bool { return d == 1 || d == 3 }
	switch {
	case image(in.Dims[1]) && !image(in.Dims[3]):
		return "NCHW", "NHWC"
	case image(in.Dims[3]) && !image(in.Dims[1]):
		return "NHWC", "NCHW"
	}
	return "", ""
}

func channels(in engine.IO) int64 {
	if l, _ := imageLayout(in); l == "NHWC" {
		return in.Dims[3]
	}
	return in.Dims[1]
}

func (a *arrays) size() int            { return a.n }
func (a *arrays) kind() string         { return a.form }
func (a *arrays) labelNames() []string { return a.names }
func (a *arrays) labelled() bool       { return a.label != nil }

func (a *arrays) rewind() error {
	for _, c := range a.columns() {
		if err := c.rewind(); err != nil {
			return err
		}
	}
	return nil
}

func (a *arrays) columns() []*column {
	var cs []*column
	for _, in := range a.inputs {
		cs = append(cs, in.col)
	}
	if a.label != nil {
		cs = append(cs, a.label)
	}
	return cs
}

func (a *arrays) close() error {
	for _, c := range a.columns() {
		c.close()
	}
	return a.file.Close()
}

func (a *arrays) id(i int) string { return fmt.Sprintf("row %d", i) }

func (a *arrays) read(_ context.Context, i int) (Sample, error) {
	s := Sample{Feeds: make(engine.Feeds, len(a.inputs)), ID: a.id(i)}
	for _, in := range a.inputs {
		t, err := a.row(in, i)
		if err != nil {
			return Sample{}, err
		}
		s.Feeds[in.io.Name] = t
	}
	if a.mask != "" {
		s.Tokens = trimPadding(s.Feeds, a.mask)
	}
	if a.label != nil {
		var err error
		if s.Label, err = a.class(i); err != nil {
			return Sample{}, err
		}
		s.HasLabel = true
	}
	return s, nil
}

// row reads row i of one input, with a batch dimension of 1.
func (a *arrays) row(in boundInput, i int) (*tensor.Tensor, error) {
	dims := append([]int64{1}, in.col.dims[1:]...)
	t, err := tensor.New(in.io.Type, dims...)
	if err != nil {
		return nil, fmt.Errorf("%w: array %q: %w", ErrFormat, in.io.Name, err)
	}
	if in.convert == nil {
		return t, in.col.read(i, t.Data)
	}
	a.buf = slices.Grow(a.buf[:0], int(in.col.rowSize))[:in.col.rowSize]
	if err := in.col.read(i, a.buf); err != nil {
		return nil, err
	}
	if err := in.convert(t.Data, a.buf); err != nil {
		return nil, fmt.Errorf("array %q, row %d: %w", in.io.Name, i, err)
	}
	return t, nil
}

// class reads the label of row i.
func (a *arrays) class(i int) (int, error) {
	a.buf = slices.Grow(a.buf[:0], int(a.label.rowSize))[:a.label.rowSize]
	if err := a.label.read(i, a.buf); err != nil {
		return 0, err
	}
	v, ok := integerAt(a.label.dtype, a.buf)
	if !ok {
		v = -1
	}
	return checkClass(v, a.names, fmt.Sprintf("row %d of array %q", i, a.label.name))
}

// checkClass returns v as a class number.
func checkClass(v int64, names []string, where string) (int, error) {
	hi := int64(maxClass)
	if names != nil {
		hi = int64(len(names)) - 1
	}
	if v < 0 || v > hi {
		if names != nil {
			return 0, fmt.Errorf("%w: %s is %d, %s has the classes 0 to %d", ErrLabel, where, v, task.LabelsFile, hi)
		}
		return 0, fmt.Errorf("%w: %s is %d, expected 0 to %d", ErrLabel, where, v, hi)
	}
	return int(v), nil
}
