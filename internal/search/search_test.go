package search

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// bench is a lab whose models lose what a table of operators says.
type bench struct {
	// lost by each operator in static INT8; dynamic and 4 bits lose a part and more.
	lost    map[string]float64
	dynamic float64 // share of lost that dynamic loses
	bytes   int64
	tries   []string
	die     int // fails at this try, from 1
}

var errDied = errors.New("died")

func (b *bench) Units(context.Context, quant.Target) (units []Unit, err error) {
	for n, l := range b.lost {
		units = append(units, Unit{Names: []string{n}, Loss: report.Num(l), Elements: b.bytes, Linear: true, Four: true})
	}
	slices.SortFunc(units, func(x, y Unit) int {
		if x.Loss != y.Loss {
			return int(1e6 * (float64(y.Loss) - float64(x.Loss)))
		}
		return strings.Compare(x.Names[0], y.Names[0])
	})
	return units, nil
}

func (b *bench) Try(_ context.Context, _ int, c Candidate) (report.Trial, error) {
	b.tries = append(b.tries, c.Label)
	if b.die > 0 && len(b.tries) >= b.die {
		return report.Trial{}, errDied
	}
	t := report.NewTrial()
	loss, bytes, work := 0.0, int64(0), 0.0
	for n, l := range b.lost {
		p := quant.Precision(c.Scheme)
		for _, r := range c.Rules {
			if r.Matches(n) {
				p = r.Precision
			}
		}
		switch p {
		case quant.PrecisionINT8:
			loss, bytes, work = loss+l, bytes+b.bytes, work+1
		case quant.PrecisionDynamic:
			loss, bytes, work = loss+b.dynamic*l, bytes+b.bytes, work+1.2
		case quant.PrecisionINT4:
			loss, bytes, work = loss+4*l, bytes+5*b.bytes/8, work+2
		default:
			bytes, work = bytes+2*b.bytes, work+3
		}
	}
	for _, r := range c.Rules {
		if r.Match == "Gather" {
			bytes -= b.bytes / 2
		}
	}
	t.Loss, t.LossLo, t.LossHi, t.Bytes = report.Num(loss), report.Num(loss), report.Num(loss), bytes
	speed := report.Num(3 * float64(len(b.lost)) / work)
	t.Speed, t.SpeedLo, t.SpeedHi, t.P99MS = speed, speed, speed, 10/speed
	t.Accepted = loss <= 0.01
	return t, nil
}

func run(t *testing.T, s *Search) *report.Trial {
	t.Helper()
	if err := s.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	return Best(s.Goal, s.Trials)
}

var transformer = Space{Targets: []quant.Target{quant.ORTCPU}, Static: true, Linear: true, Tables: true}

// TestRaise: exactly the operators that cost too much stay higher, and what the
// order wrongly blames goes back.
func TestRaise(t *testing.T) {
	lost := map[string]float64{}
	for i := range 40 {
		lost[fmt.Sprintf("op%02d", i)] = 0.0001
	}
	lost["op07"], lost["op21"], lost["op33"] = 0.02, 0.03, 0.004
	b := &bench{lost: lost, dynamic: 2, bytes: 1000}
	s := &Search{Goal: report.Goal{MaxLoss: 0.01}, Space: transformer, Lab: b}
	best := run(t, s)
	if best == nil || len(best.Operators) != 2 || !slices.Contains(best.Operators, "op07=fp16") || !slices.Contains(best.Operators, "op21=fp16") {
		t.Fatalf("%+v", best)
	}
	if len(s.Trials) > 12 {
		t.Errorf("%d trials: %q", len(s.Trials), b.tries)
	}
	// Where dynamic ranges suffice they are kept instead of half precision.
	b = &bench{lost: lost, dynamic: 0.01, bytes: 1000}
	s = &Search{Goal: report.Goal{MaxLoss: 0.01}, Space: transformer, Lab: b}
	if best = run(t, s); best == nil || !slices.Contains(best.Operators, "op21=int8-dynamic") || len(best.Operators) != 2 {
		t.Fatalf("%+v", best)
	}
	// Nothing but the safe one is left when every operator costs too much.
	for n := range lost {
		lost[n] = 0.02
	}
	s = &Search{Goal: report.Goal{MaxLoss: 0.01}, Space: transformer, Lab: &bench{lost: lost, dynamic: 2, bytes: 1000}}
	if best = run(t, s); best == nil || best.Speed > 1.01 {
		t.Fatalf("%+v", best)
	}
}

// TestShrink: 4 bits go to the least sensitive, as many as the size takes.
func TestShrink(t *testing.T) {
	lost := map[string]float64{"a": 0.004, "b": 0.0001, "c": 0.0002, "d": 0.0003}
	b := &bench{lost: lost, dynamic: 1, bytes: 1000}
	s := &Search{Goal: report.Goal{MaxLoss: 0.01, MaxBytes: 3000}, Space: transformer, Lab: b}
	best := run(t, s)
	if best == nil || best.Bytes > 3000 || !slices.Equal(best.Operators, []string{"Gather=int4", "b=int4", "c=int4"}) {
		t.Fatalf("%v of %q", best.Operators, b.tries)
	}
	// A size that nothing reaches: the best is what comes nearest.
	s = &Search{Goal: report.Goal{MaxLoss: 0.01, MaxBytes: 100}, Space: transformer, Lab: b}
	best = run(t, s)
	if best == nil || best.Bytes > 3000 || s.Goal.Excess(*best) == 0 {
		t.Fatalf("%+v", best)
	}
}

// TestResume: a search that died goes on without making a trial twice, and ends
// where the whole one ends.
func TestResume(t *testing.T) {
	lost := map[string]float64{"a": 0.02, "b": 0.001, "c": 0.03, "d": 0.002, "e": 0.001}
	whole := &Search{Goal: report.Goal{MaxLoss: 0.01}, Space: transformer, Lab: &bench{lost: lost, dynamic: 2, bytes: 1000}}
	want := run(t, whole)
	for die := 1; die <= len(whole.Trials); die++ {
		known := map[string]report.Trial{}
		note := func(t report.Trial, _ bool) error { known[t.Key] = t; return nil }
		s := &Search{Goal: whole.Goal, Space: transformer, Lab: &bench{lost: lost, dynamic: 2, bytes: 1000, die: die}, OnTrial: note}
		if err := s.Run(context.Background()); !errors.Is(err, errDied) {
			t.Fatal(err)
		}
		b := &bench{lost: lost, dynamic: 2, bytes: 1000}
		s = &Search{Goal: whole.Goal, Space: transformer, Lab: b, Tried: known, OnTrial: note}
		got := run(t, s)
		if got.Key != want.Key || len(b.tries) != len(whole.Trials)-die+1 {
			t.Errorf("died at %d: %s after %d more, want %s after %d", die, got.Key, len(b.tries), want.Key, len(whole.Trials)-die+1)
		}
	}
}

func TestFront(t *testing.T) {
	mk := func(n int, loss, speed float64, bytes int64) report.Trial {
		t := report.NewTrial()
		t.Number, t.Loss, t.Speed, t.Bytes = n, report.Num(loss), report.Num(speed), bytes
		return t
	}
	unknown := report.NewTrial()
	unknown.Number = 9
	all := []report.Trial{mk(1, 0, 1, 200), mk(2, 0.01, 2, 100), mk(3, 0.02, 2, 100), mk(4, 0.02, 1.5, 50), unknown}
	if f := Front(all); !slices.Equal(f, []int{1, 2, 4}) {
		t.Errorf("%v", f)
	}
	if f := Front(nil); f == nil || len(f) != 0 {
		t.Errorf("%v", f)
	}
}

func TestBetter(t *testing.T) {
	g := report.Goal{MaxLoss: 0.01, SLOMS: 20, MaxBytes: 100}
	base := report.Trial{Loss: 0.001, Speed: 2, SpeedLo: 1.9, SpeedHi: 2.1, P99MS: 10, Bytes: 90}
	for name, worse := range map[string]func(*report.Trial){
		"size":    func(t *report.Trial) { t.Bytes, t.Speed, t.SpeedLo, t.SpeedHi = 110, 4, 3.9, 4.1 },
		"latency": func(t *report.Trial) { t.P99MS, t.Loss = 21, 0 },
		"speed":   func(t *report.Trial) { t.SpeedLo, t.SpeedHi, t.Bytes = 1.7, 1.8, 50 },
		"bytes":   func(t *report.Trial) { t.Bytes, t.SpeedHi, t.Loss = 95, 2.2, 0 },
		"loss":    func(t *report.Trial) { t.Loss, t.SpeedHi = 0.002, 2.2 },
	} {
		w := base
		worse(&w)
		if Better(g, w, base) || !Better(g, base, w) {
			t.Errorf("%s: %+v", name, w)
		}
	}
}
