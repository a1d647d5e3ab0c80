package eval

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// pairs compares logits of two models, each given as rows.
func pairs(t *testing.T, labels []int, ref, quant [][]float32) *Result {
	t.Helper()
	pick := func(rows [][]float32) func(*tensor.Tensor) *tensor.Tensor {
		return func(x *tensor.Tensor) *tensor.Tensor {
			row := rows[int(tensor.View[float32](x)[0])]
			return tensor.From(row, 1, int64(len(row)))
		}
	}
	s, q := session(t, "logits", pick(ref)), session(t, "logits", pick(quant))
	var rows [][]float32
	for i := range ref {
		rows = append(rows, []float32{float32(i)})
	}
	r, err := Compare(t.Context(), s, q, vectors(labels, rows...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTwoClassesWithoutLabels: of two logits that sum to 0 one changed answer has
// the cosine -1, and a model that changed one near-tie of 100 was refused.
func TestTwoClassesWithoutLabels(t *testing.T) {
	var ref, same, tie, wrong, half [][]float32
	for i := range 400 {
		x := float32(2 + i%3)
		if i%2 == 0 {
			x = -x
		}
		y := x
		if i%50 == 7 {
			x, y = .01, -.01
		}
		ref, same = append(ref, []float32{x, -x}), append(same, []float32{x * .98, -x * .98})
		tie = append(tie, []float32{y * .98, -y * .98})
		if i%20 == 0 {
			y = -y
		}
		wrong = append(wrong, []float32{y, -y})
		half = append(half, []float32{x / 20, -x / 20})
	}
	one := .01
	cos := 1 - one
	gate := Gate{MinCosine: &cos, MaxChanged: &one, AllowSlower: true}
	for _, c := range []struct {
		name  string
		quant [][]float32
		want  string
	}{{"same", same, ""}, {"near-ties", tie, ""}, {"sure answers", wrong, "cost"}, {"probabilities gone", half, "probabilities moved"}} {
		r := pairs(t, nil, ref, c.quant)
		if r.Answers == nil || r.Answers.Classes != 2 || r.Answers.Loss.N != 400 {
			t.Fatalf("%s: answers are %+v", c.name, r.Answers)
		}
		refused, _ := gate.Check(r)
		if (c.want == "") != (len(refused) == 0) || len(refused) > 0 && !strings.Contains(refused[0], c.want) {
			t.Errorf("%s: refused with %q, expected %q", c.name, refused, c.want)
		}
		if c.name == "near-ties" && r.Cosine.Mean > cos {
			t.Errorf("the cosine %.4f passes: the case shows nothing", r.Cosine.Mean)
		}
	}
}

// TestAnswersReference: the numbers by their definition, written out here.
func TestAnswersReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const n, k = 60, 5
	ref, quant := make([][]float32, n), make([][]float32, n)
	var expected, lost, moved float64
	for i := range n {
		ref[i], quant[i] = make([]float32, k), make([]float32, k)
		for j := range k {
			ref[i][j] = float32(rng.NormFloat64())
			quant[i][j] = ref[i][j] + float32(rng.NormFloat64()/2)
		}
		exp := func(x []float32) (p [k]float64, at int) {
			var sum float64
			for j, v := range x {
				p[j] = math.Exp(float64(v))
				sum += p[j]
				if v > x[at] {
					at = j
				}
			}
			for j := range p {
				p[j] /= sum
			}
			return p, at
		}
		p, a := exp(ref[i])
		q, b := exp(quant[i])
		expected += p[a] / n
		lost += (p[a] - p[b]) / n
		var worst float64 // the largest difference over all events is the total variation
		for event := range 1 << k {
			var d float64
			for j := range k {
				if event>>j&1 == 1 {
					d += p[j] - q[j]
				}
			}
			worst = max(worst, math.Abs(d))
		}
		moved += worst / n
	}
	got := pairs(t, nil, ref, quant).Answers
	for _, c := range []struct {
		what      string
		got, want float64
	}{{"expected", got.Expected, expected}, {"loss", got.Loss.Value, lost}, {"distance", got.Distance.Value, moved}} {
		if math.Abs(c.got-c.want) > 1e-12 {
			t.Errorf("%s is %v, expected %v", c.what, c.got, c.want)
		}
	}
}

// TestExpectedLossInterval: where FP32 is sure, the interval is that of labels
// that FP32 has right.
func TestExpectedLossInterval(t *testing.T) {
	for _, lost := range []int{0, 1, 7} {
		x := make([]float64, 100)
		for i := range lost {
			x[i] = 1
		}
		got, want := expectedLoss(x), Paired{BothRight: 100 - lost, RefOnly: lost}.Difference()
		if math.Abs(got.Lo+want.Hi) > 1e-12 || math.Abs(got.Hi+want.Lo) > 1e-12 || got.Value != -want.Value {
			t.Errorf("%d lost: %+v, labels give %+v", lost, got, want)
		}
	}
}

// TestAnswersEnds: probabilities are taken as they are, NaN is no answer, many
// classes have none, and labels decide alone.
func TestAnswersEnds(t *testing.T) {
	p := [][]float32{{.9, .1}, {.2, .8}}
	if a := pairs(t, nil, p, [][]float32{{.8, .2}, {.2, .8}}).Answers; math.Abs(a.Distance.Value-.05) > 1e-6 || math.Abs(a.Expected-.85) > 1e-6 {
		t.Errorf("probabilities: %+v", a)
	}
	if a := pairs(t, nil, p, [][]float32{{nan32, .2}, {.2, .8}}).Answers; math.Abs(a.Loss.Value-.45) > 1e-6 || a.Distance.Value != .5 {
		t.Errorf("NaN: %+v", a)
	}
	if a := pairs(t, nil, [][]float32{{nan32, 1}}, [][]float32{{0, 1}}).Answers; a != nil {
		t.Errorf("a blind sample gives %+v", a)
	}
	many := make([]float32, FewClasses+1)
	if a := pairs(t, nil, [][]float32{many}, [][]float32{many}).Answers; a != nil {
		t.Errorf("%d classes give %+v", len(many), a)
	}
	// One number a sample: one of 400 that changes its sign is no catastrophe.
	ref, quant := make([][]float32, 400), make([][]float32, 400)
	for i := range ref {
		x := float32(i%7) - 3
		ref[i], quant[i] = []float32{x + .001}, []float32{x - .001}
	}
	cos := .99
	r := pairs(t, nil, ref, quant)
	if refused, _ := (Gate{MinCosine: &cos}).Check(r); len(refused) > 0 || r.Kind != Other || r.Cosine.Mean > cos {
		t.Errorf("one number: %q, kind %s, mean cosine %.3f", refused, r.Kind, r.Cosine.Mean)
	}
}
