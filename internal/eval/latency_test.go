package eval

import (
	"context"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestInterleaveOrder(t *testing.T) {
	var got strings.Builder
	call := func(s string) func(context.Context) error {
		return func(context.Context) error { got.WriteString(s); return nil }
	}
	l, err := Interleave(t.Context(), []func(context.Context) error{call("A"), call("B"), call("C")}, InterleaveOptions{Warmup: 1, Rounds: 3})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("ABC", 4); got.String() != want {
		t.Errorf("ran %s, expected %s", got.String(), want)
	}
	if len(l.Candidates) != 3 || len(l.Ratios) != 3 || l.Candidates[0].N != 3 {
		t.Errorf("got %+v", l)
	}
}

func TestInterleaveMeasures(t *testing.T) {
	sleep := func(d time.Duration) func(context.Context) error {
		return func(context.Context) error { time.Sleep(d); return nil }
	}
	l, err := Interleave(t.Context(), []func(context.Context) error{sleep(4 * time.Millisecond), sleep(time.Millisecond)}, InterleaveOptions{Rounds: 25})
	if err != nil {
		t.Fatal(err)
	}
	// Sleeping takes at least as long as asked, and longer on a busy machine;
	// the median of the ratios stays near 4.
	if a := l.Candidates[0]; a.MinMS < 4 || a.P50MS < a.MinMS || a.P90MS < a.P50MS || a.P99MS < a.P90MS || a.MaxMS < a.P99MS || len(a.CurveMS) != curvePoints || a.CurveMS[0] != a.MinMS || a.CurveMS[100] != a.MaxMS {
		t.Errorf("statistics %+v", a)
	}
	if r := l.Ratios[1]; r.Median < 1.2 || r.Median > 4.5 || r.Lo > r.Median || r.Hi < r.Median || r.Coverage < .95 || r.N != 25 {
		t.Errorf("ratio %+v, expected about 4", r)
	}
	if r := l.Ratios[0]; r.Median != 1 || r.Lo != 1 || r.Hi != 1 {
		t.Errorf("ratio to itself %+v", r)
	}
}

func TestInterleaveBounds(t *testing.T) {
	n := 0
	count := []func(context.Context) error{func(context.Context) error { n++; time.Sleep(time.Millisecond); return nil }}
	for _, c := range []struct {
		name        string
		o           InterleaveOptions
		least, most int
	}{
		{"default", InterleaveOptions{}, DefaultRounds, DefaultRounds},
		{"at least this long", InterleaveOptions{Rounds: 1, MinTime: 30 * time.Millisecond}, 2, 30},
		{"at most this long", InterleaveOptions{Rounds: 1000, MinTime: time.Hour, MaxTime: 20 * time.Millisecond}, 2, 20},
		{"two rounds whatever", InterleaveOptions{Rounds: 1000, MaxTime: 1}, 2, 2},
	} {
		n = 0
		if _, err := Interleave(t.Context(), count, c.o); err != nil {
			t.Fatal(err)
		}
		if n < c.least || n > c.most {
			t.Errorf("%s: %d rounds, expected %d..%d", c.name, n, c.least, c.most)
		}
	}
}

func TestInterleaveErrors(t *testing.T) {
	boom := errors.New("boom")
	ok := func(context.Context) error { return nil }
	bad := func(context.Context) error { return boom }
	ctx, cancel := context.WithCancel(t.Context())
	stop := func(context.Context) error { cancel(); return nil }
	for _, c := range []struct {
		name string
		ctx  context.Context
		f    []func(context.Context) error
		o    InterleaveOptions
		want error
	}{
		{"nothing", t.Context(), nil, InterleaveOptions{}, ErrOptions},
		{"negative", t.Context(), []func(context.Context) error{ok}, InterleaveOptions{Rounds: -1}, ErrOptions},
		{"too many", t.Context(), []func(context.Context) error{ok}, InterleaveOptions{Rounds: MaxRounds + 1}, ErrOptions},
		{"warm-up fails", t.Context(), []func(context.Context) error{ok, bad}, InterleaveOptions{Warmup: 1}, boom},
		{"round fails", t.Context(), []func(context.Context) error{ok, bad}, InterleaveOptions{}, boom},
		{"cancelled", ctx, []func(context.Context) error{ok, stop}, InterleaveOptions{}, context.Canceled},
	} {
		if l, err := Interleave(c.ctx, c.f, c.o); !errors.Is(err, c.want) || l != nil {
			t.Errorf("%s: got %v, %v, expected %v", c.name, l, err, c.want)
		}
	}
}

// TestPairedRatioCancelsDrift: the machine slows down tenfold half-way; the
// paired ratio does not notice.
func TestPairedRatioCancelsDrift(t *testing.T) {
	var a, b []float64
	for i := range 40 {
		slow := 1.0
		if i >= 20 {
			slow = 10
		}
		a, b = append(a, 3*slow), append(b, slow)
	}
	if r := PairedRatio(a, b); !near(r.Median, 3, 1e-12) || !near(r.Lo, 3, 1e-12) || !near(r.Hi, 3, 1e-12) {
		t.Errorf("got %+v, expected 3", r)
	}
	if r := PairedRatio([]float64{1, 0}, []float64{0, 1}); r != (Ratio{}) {
		t.Errorf("unmeasurable rounds give %+v", r)
	}
	if s := StatsOf(nil); !reflect.DeepEqual(s, LatencyStats{}) {
		t.Errorf("no latencies give %+v", s)
	}
}

func TestParseProc(t *testing.T) {
	l, err := parseLoad(strings.NewReader("0.20 0.18 0.12 1/80 11206\n"))
	if err != nil || l != .2 {
		t.Errorf("load %g, %v", l, err)
	}
	c, err := parseStat(strings.NewReader("intr 5\ncpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5\n"))
	if want := (cpuTimes{total: 531, idle: 450, stolen: 8}); err != nil || c != want {
		t.Errorf("got %+v, %v, expected %+v", c, err, want)
	}
	c, err = parseStat(strings.NewReader("cpu 1 2 3 4\n"))
	if want := (cpuTimes{total: 10, idle: 4}); err != nil || c != want {
		t.Errorf("old kernel: got %+v, %v, expected %+v", c, err, want)
	}
	for _, s := range []string{"", "cpu", "cpu 1 2 x 4 5", "cpu0 1 2 3 4 5", "cpu -1 2 3 4 5", strings.Repeat("x", 100_000)} {
		if _, err := parseStat(strings.NewReader(s)); err == nil {
			t.Errorf("%.20q was accepted", s)
		}
	}
	for _, s := range []string{"", "x"} {
		if _, err := parseLoad(strings.NewReader(s)); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestNoise(t *testing.T) {
	a := snapshot{cpu: &cpuTimes{total: 1000, idle: 500, stolen: 10}, own: 1}
	b := snapshot{cpu: &cpuTimes{total: 1200, idle: 540, stolen: 20}, own: 1.5}
	n := noiseBetween(a, b)
	// 200 ticks, 40 idle, 10 stolen, 50 our own: 100 of others.
	if n.Stolen == nil || math.Abs(*n.Stolen-.05) > 1e-12 || n.Others == nil || math.Abs(*n.Others-.5) > 1e-12 {
		t.Fatalf("got %+v", n)
	}
	if w := n.Warnings(); len(w) != 2 || !strings.Contains(w[0], "5 %") || !strings.Contains(w[1], "50 %") {
		t.Errorf("warnings %q", w)
	}
	if n := noiseBetween(a, a); n.Stolen != nil || n.Reason == "" || n.Warnings() != nil {
		t.Errorf("too short gives %+v", n)
	}
	if n := noiseBetween(snapshot{}, snapshot{reason: "CPU times: no file"}); n.Load1 != nil || n.Stolen != nil || n.Reason == "" {
		t.Errorf("no /proc gives %+v", n)
	}
}
