package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func searched() Search {
	t := NewTrial()
	t.Number, t.Key, t.Label, t.Scheme, t.Accepted = 1, "k", "INT8 <script>\x1b[2J", "int8", true
	t.Loss, t.LossLo, t.LossHi, t.Speed, t.SpeedLo, t.SpeedHi, t.P99MS, t.Bytes = 0.002, -0.001, 0.005, 2.5, 2.4, 2.6, 8, 25e6
	bad := NewTrial()
	bad.Number, bad.Key, bad.Label, bad.Why = 2, "l", "INT4", "</td><b>it loses"
	return Search{Model: Model{Name: "m.onnx", Bytes: 100e6}, Goal: Goal{MaxLoss: 0.01, SLOMS: 20, MaxBytes: 30e6}, Metric: "accuracy", Samples: 300,
		Trials: []Trial{t, bad}, Front: []int{1}, Best: 1, Recipe: "scheme: int8\n", Verdict: Verdict{Status: Accepted}}
}

func TestSearchRenders(t *testing.T) {
	s := searched()
	var text, page, facts bytes.Buffer
	if err := SearchText(&text, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"loss of accuracy at most 1.00 %, 99th percentile at most 20.0 ms, at most 30.0 MB; 300 samples judge", "0.200 % (−0.100 to 0.500)", "2.50× (2.40× to 2.60×)", "best", "it loses", "ACCEPTED"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "\x1b") {
		t.Error("the text moves the cursor")
	}
	if err := SearchHTML(&page, s); err != nil {
		t.Fatal(err)
	}
	if p := page.String(); strings.Contains(p, "<script") || strings.Contains(p, "<b>it") || strings.Contains(p, "NaN") || strings.Count(p, "<circle") != 2 || !strings.Contains(p, "largest loss") {
		t.Errorf("%s", p)
	}
	if err := WriteSearchJSON(&facts, s); err != nil {
		t.Fatal(err)
	}
	var back Search
	if err := json.Unmarshal(facts.Bytes(), &back); err != nil || back.Schema != SearchSchema || back.BestTrial().Loss != 0.002 || back.Trials[1].Measured() {
		t.Errorf("%+v, %v", back, err)
	}
	// Nothing measured, nothing kept.
	if err := SearchHTML(&page, Search{Trials: []Trial{NewTrial()}}); err != nil {
		t.Fatal(err)
	}
}

func TestGoalExcess(t *testing.T) {
	g := Goal{SLOMS: 10, MaxBytes: 100}
	for _, c := range []struct {
		p99   Num
		bytes int64
		want  float64
	}{{9, 90, 0}, {15, 90, 0.5}, {9, 120, 0.2}, {15, 120, 0.7}} {
		if x := g.Excess(Trial{P99MS: c.p99, Bytes: c.bytes}); x < c.want-1e-9 || x > c.want+1e-9 {
			t.Errorf("%+v: %v", c, x)
		}
	}
}
