package eval

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// seen is what a detector returns for one image.
type seen struct {
	boxes  [][4]float32
	scores []float32
	labels []int64
}

func (s seen) outputs() engine.Feeds {
	flat := make([]float32, 0, 4*len(s.boxes))
	for _, b := range s.boxes {
		flat = append(flat, b[:]...)
	}
	n := int64(len(s.boxes))
	return engine.Feeds{"boxes": tensor.From(flat, n, 4), "scores": tensor.From(s.scores, n), "labels": tensor.From(s.labels, n)}
}

// detectorOf answers the i-th image (the only element of x) with what[i].
func detectorOf(t testing.TB, what []seen) engine.Session {
	t.Helper()
	spec := engine.IOSpec{
		Inputs: []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{1, 1}}},
		Outputs: []engine.IO{{Name: "boxes", Type: tensor.Float32, Dims: []int64{-1, 4}}, {Name: "scores", Type: tensor.Float32, Dims: []int64{-1}},
			{Name: "labels", Type: tensor.Int64, Dims: []int64{-1}}},
	}
	return sessionOf(t, spec, func(in engine.Feeds) (engine.Feeds, error) {
		x, err := in["x"].F32()
		if err != nil {
			return nil, err
		}
		return what[int(x[0])].outputs(), nil
	})
}

func images(n int) *list {
	rows := make([][]float32, n)
	for i := range rows {
		rows[i] = []float32{float32(i)}
	}
	return vectors(nil, rows...)
}

func compareDetectors(t testing.TB, ref, quant []seen) (*Result, error) {
	t.Helper()
	return Compare(t.Context(), detectorOf(t, ref), detectorOf(t, quant), images(len(ref)), Options{})
}

func TestDetections(t *testing.T) {
	cat, dog := [4]float32{0, 0, 10, 10}, [4]float32{20, 20, 40, 30}
	ref := seen{[][4]float32{cat, dog}, []float32{.9, .6}, []int64{1, 2}}
	for _, c := range []struct {
		name           string
		quant          seen
		share, overlap float64
		matched        int64
	}{
		{"the same in another order", seen{[][4]float32{dog, cat}, []float32{.6, .9}, []int64{2, 1}}, 1, 1, 2},
		{"one more, of low score", seen{[][4]float32{cat, dog, {50, 50, 60, 60}}, []float32{.9, .6, .1}, []int64{1, 2, 1}}, 3 / 3.1, 1, 2},
		{"one lost", seen{[][4]float32{cat}, []float32{.9}, []int64{1}}, 1.8 / 2.4, 1, 1},
		{"another class", seen{[][4]float32{cat, dog}, []float32{.9, .6}, []int64{1, 3}}, 1.8 / 3, 1, 1},
		{"moved a little: 80 of 120", seen{[][4]float32{{2, 0, 12, 10}}, []float32{.9}, []int64{1}}, 1.8 / 2.4, 80. / 120, 1},
		{"moved too far: 60 of 140", seen{[][4]float32{{4, 0, 14, 10}}, []float32{.9}, []int64{1}}, 0, 0, 0},
		{"one box is matched once", seen{[][4]float32{cat, cat}, []float32{.9, .9}, []int64{1, 1}}, 1.8 / 3.3, 1, 1},
		{"nothing", seen{}, 0, 0, 0},
		{"padding has no score", seen{[][4]float32{cat, dog, {}, {}}, []float32{.9, .6, 0, -1}, []int64{1, 2, 0, 0}}, 1, 1, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := compareDetectors(t, []seen{ref}, []seen{c.quant})
			if err != nil {
				t.Fatal(err)
			}
			d := r.Detected
			if r.Kind != Detections || d == nil {
				t.Fatalf("read as %q", r.Kind)
			}
			if math.Abs(d.Agreement.Value-c.share) > 1e-6 || math.Abs(d.Overlap-c.overlap) > 1e-6 || d.Matched != c.matched {
				t.Errorf("agreement %v, overlap %v, %d matched; expected %v, %v, %d", d.Agreement.Value, d.Overlap, d.Matched, c.share, c.overlap, c.matched)
			}
		})
	}
}

// One box of the quantized model stands for one of FP32's.
func TestDetectionsOnce(t *testing.T) {
	at := [4]float32{0, 0, 10, 10}
	two := seen{[][4]float32{at, at}, []float32{.5, .5}, []int64{1, 1}}
	one := seen{[][4]float32{at}, []float32{.5}, []int64{1}}
	r, err := compareDetectors(t, []seen{two}, []seen{one})
	if err != nil {
		t.Fatal(err)
	}
	if d := r.Detected; d.Matched != 1 || math.Abs(d.Agreement.Value-1/1.5) > 1e-6 {
		t.Errorf("%d matched, agreement %v", d.Matched, d.Agreement.Value)
	}
}

// What depends on neither order nor side: a detector beside itself agrees
// wholly, and the share is in 0..1.
func TestDetectionsProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() seen {
		var s seen
		for range rng.IntN(20) {
			x, y := rng.Float32()*50, rng.Float32()*50
			s.boxes = append(s.boxes, [4]float32{x, y, x + 1 + rng.Float32()*30, y + 1 + rng.Float32()*30})
			s.scores, s.labels = append(s.scores, rng.Float32()), append(s.labels, rng.Int64N(3))
		}
		return s
	}
	var a, b []seen
	for range 200 {
		s := random()
		a, b = append(a, s), append(b, s)
	}
	for i := range b { // shuffled
		s := b[i]
		n := seen{}
		for _, j := range rng.Perm(len(s.boxes)) {
			n.boxes, n.scores, n.labels = append(n.boxes, s.boxes[j]), append(n.scores, s.scores[j]), append(n.labels, s.labels[j])
		}
		b[i] = n
	}
	r, err := compareDetectors(t, a, b)
	if err != nil {
		t.Fatal(err)
	}
	if r.Detected.Agreement.Value != 1 || r.Detected.Matched != r.Detected.Ref {
		t.Errorf("a detector beside itself in another order: %+v", r.Detected)
	}
	for i := range b {
		b[i] = random()
	}
	if r, err = compareDetectors(t, a, b); err != nil {
		t.Fatal(err)
	}
	if v := r.Detected.Agreement.Value; v < 0 || v > .5 {
		t.Errorf("two unlike detectors agree to %v", v)
	}
}

// An output that is empty for every sample, of whatever kind, proves nothing:
// it used to pass with a cosine of 1.
func TestGateRefusesNothing(t *testing.T) {
	r, err := compareDetectors(t, make([]seen, 12), make([]seen, 12))
	if err != nil {
		t.Fatal(err)
	}
	loss := .01
	no, _ := Gate{MaxChanged: &loss}.Check(r)
	if len(no) != 1 || !strings.Contains(no[0], "empty for all 12 samples") {
		t.Errorf("refusals %q", no)
	}
	empty := func(*tensor.Tensor) *tensor.Tensor { return tensor.From([]float32{}, 1, 0) }
	if r, err = Compare(t.Context(), session(t, "y", empty), session(t, "y", empty), images(3), Options{}); err != nil {
		t.Fatal(err)
	}
	if no, _ = (Gate{MinCosine: &loss}).Check(r); len(no) != 1 {
		t.Errorf("an empty tensor: refusals %q", no)
	}
}

func TestGateDetections(t *testing.T) {
	one := func(score float32) seen {
		return seen{[][4]float32{{0, 0, 9, 9}}, []float32{score}, []int64{1}}
	}
	var same, other, broken, blind []seen
	for range 150 {
		same, other = append(same, one(.9)), append(other, seen{})
		broken, blind = append(broken, one(float32(math.NaN()))), append(blind, one(float32(math.Inf(1))))
	}
	loss := .01
	for _, c := range []struct {
		name       string
		ref, quant []seen
		refusal    string
	}{
		{"the same", same, same, ""},
		{"nothing found", same, other, "of the detections"},
		{"invented", other, same, "of the detections"},
		{"NaN", same, broken, "NaN or infinity"},
		{"FP32 itself", blind, same, "FP32 itself"},
	} {
		r, err := compareDetectors(t, c.ref, c.quant)
		if err != nil {
			t.Fatal(err)
		}
		no, _ := Gate{MaxChanged: &loss}.Check(r)
		if c.refusal == "" && len(no) > 0 || c.refusal != "" && !strings.Contains(strings.Join(no, "; "), c.refusal) {
			t.Errorf("%s: refusals %q, expected %q", c.name, no, c.refusal)
		}
	}
}

// Rows of six, centres instead of corners, outputs that do not fit together.
func TestDetectionsForms(t *testing.T) {
	rowsOf := func(v ...float32) *tensor.Tensor { return tensor.From(v, 1, int64(len(v)/6), 6) }
	a := func(*tensor.Tensor) *tensor.Tensor { return rowsOf(0, 0, 9, 9, .8, 1, 20, 20, 30, 30, .6, 2) }
	b := func(*tensor.Tensor) *tensor.Tensor { return rowsOf(20, 20, 30, 30, .6, 2, 0, 0, 9, 9, .8, 1) }
	r, err := Compare(t.Context(), session(t, "output0", a), session(t, "output0", b), images(2), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != Detections || r.Detected.Agreement.Value != 1 || r.Detected.Matched != 4 {
		t.Errorf("%q, %+v", r.Kind, r.Detected)
	}
	// Centre (50, 50) and a width of 10: no second corner lies at 10.
	mid := seen{[][4]float32{{50, 50, 10, 10}}, []float32{.5}, []int64{1}}
	off := seen{[][4]float32{{52, 50, 10, 10}}, []float32{.5}, []int64{1}}
	if r, err = compareDetectors(t, []seen{mid}, []seen{off}); err != nil {
		t.Fatal(err)
	}
	if math.Abs(r.Detected.Overlap-80./120) > 1e-6 {
		t.Errorf("overlap %v of centres", r.Detected.Overlap)
	}
	torn := seen{[][4]float32{{0, 0, 1, 1}}, []float32{.5, .4}, []int64{1}}
	whole := seen{[][4]float32{{0, 0, 1, 1}}, []float32{.5}, []int64{1}}
	if _, err = compareDetectors(t, []seen{whole}, []seen{torn}); !errors.Is(err, ErrOutput) {
		t.Errorf("torn outputs: %v", err)
	}
	if _, err = Compare(t.Context(), session(t, "y", same), session(t, "y", same), images(2), Options{Kind: Detections}); !errors.Is(err, ErrOutput) {
		t.Errorf("no detector: %v", err)
	}
}

// A tensor inside the graph may have as many rows as a model proposes.
func TestUnlikeLengths(t *testing.T) {
	spec := engine.IOSpec{
		Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{1, 1}}},
		Outputs: []engine.IO{{Name: "y", Type: tensor.Float32, Dims: []int64{1, 2}}, {Name: "proposals", Type: tensor.Float32, Dims: []int64{-1}}},
	}
	model := func(n int) engine.Session {
		return sessionOf(t, spec, func(in engine.Feeds) (engine.Feeds, error) {
			return engine.Feeds{"y": tensor.From([]float32{1, 2}, 1, 2), "proposals": tensor.From(make([]float32, n), int64(n))}, nil
		})
	}
	r, err := Compare(t.Context(), model(3), model(4), images(5), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Unlike["proposals"] != 5 || !strings.Contains(strings.Join(r.Warnings, "\n"), `"proposals" has another length`) {
		t.Errorf("unlike %v, warnings %q", r.Unlike, r.Warnings)
	}
}

// One token of ten that changes its class leaves the mean of all scores as it is; padding
// does not count.
func TestTokenClassifier(t *testing.T) {
	const tokens, classes = 10, 3
	set := func() *list {
		l := &list{}
		for range 150 {
			x, mask := make([]float32, tokens*classes), make([]int64, tokens)
			for i := range tokens {
				x[i*classes+i%classes] = 5
				if i < tokens-2 {
					mask[i] = 1
				}
			}
			l.samples = append(l.samples, Sample{Feeds: engine.Feeds{"x": tensor.From(x, 1, tokens, classes), DefaultMask: tensor.From(mask, 1, tokens)}})
		}
		return l
	}
	swap := func(token int) func(*tensor.Tensor) *tensor.Tensor {
		return func(x *tensor.Tensor) *tensor.Tensor {
			v, _ := x.F32()
			r := append([]float32(nil), v...)
			at := token * classes
			r[at], r[at+1], r[at+2] = r[at+2], r[at], r[at+1]
			return tensor.From(r, x.Dims...)
		}
	}
	tagger := func(f func(*tensor.Tensor) *tensor.Tensor) engine.Session {
		return sessionOf(t, engine.IOSpec{
			Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{1, -1, classes}}, {Name: DefaultMask, Type: tensor.Int64, Dims: []int64{1, -1}}},
			Outputs: []engine.IO{{Name: "logits", Type: tensor.Float32, Dims: []int64{1, -1, classes}}},
		}, func(in engine.Feeds) (engine.Feeds, error) { return engine.Feeds{"logits": f(in["x"])}, nil })
	}
	loss := .01
	for _, c := range []struct {
		name    string
		quant   func(*tensor.Tensor) *tensor.Tensor
		share   float64
		refused bool
	}{{"the same", same, 1, false}, {"one of eight", swap(4), 7. / 8, true}, {"padding", swap(tokens - 1), 1, false}} {
		r, err := Compare(t.Context(), tagger(same), tagger(c.quant), set(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind != TokenClassifier || r.Tokens == nil || math.Abs(r.Tokens.Value-c.share) > 1e-9 {
			t.Fatalf("%s: %q, %+v", c.name, r.Kind, r.Tokens)
		}
		if no, _ := (Gate{MaxChanged: &loss}).Check(r); len(no) > 0 != c.refused {
			t.Errorf("%s: refusals %q", c.name, no)
		}
	}
	for name, kind := range map[string]Kind{"last_hidden_state": Embedding, "token_embeddings": Embedding, "softmax_11": TokenClassifier, "logits": TokenClassifier, "y": Embedding} {
		if k := KindOf(name, []int64{1, 5, 7}); k != kind {
			t.Errorf("%s is read as %q", name, k)
		}
	}
}
