package search

import (
	"context"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// learner is a lab in which learning a block halves what its operators lose.
type learner struct{ bench }

func (l *learner) Try(ctx context.Context, n int, c Candidate) (report.Trial, error) {
	lost := l.lost
	l.lost = map[string]float64{}
	for name, x := range lost {
		if slices.Contains(c.Learn, name) {
			x /= 2
		}
		l.lost[name] = x
	}
	t, err := l.bench.Try(ctx, n, c)
	l.lost, t.Learned = lost, c.Learn
	return t, err
}

// TestLearn: blocks are learned where that may suffice, those that lose most, and then
// nothing stays higher; where it may not, or is not asked for, they are not.
func TestLearn(t *testing.T) {
	lost := map[string]float64{"a": 0.008, "b": 0.006, "c": 0.0005, "d": 0.0002}
	space := Space{Targets: []quant.Target{quant.ORTCPU}, Static: true, Conv: true, Learns: true}
	l := &learner{bench{lost: lost, bytes: 1000}}
	s := &Search{Goal: report.Goal{MaxLoss: 0.01}, Space: space, Lab: l}
	best := run(t, s)
	if best == nil || !slices.Equal(best.Learned, []string{"a", "b"}) || len(best.Operators) != 0 || best.Speed != 3 || len(s.Trials) != 3 {
		t.Fatalf("%+v of %q", best, l.tries)
	}
	again := &Search{Goal: s.Goal, Space: space, Lab: &learner{bench{die: 1}}, Tried: map[string]report.Trial{}}
	for _, x := range s.Trials {
		again.Tried[x.Key] = x
	}
	l2 := again.Lab.(*learner)
	l2.lost, l2.bench.bytes = lost, 1000
	if b := run(t, again); b == nil || b.Key != best.Key || len(l2.tries) != 0 {
		t.Errorf("a second start tries %q and ends at %+v", l2.tries, b)
	}
	for name, change := range map[string]func(*Space, map[string]float64){
		"not asked for": func(s *Space, _ map[string]float64) { s.Learns = false },
		"hopeless":      func(_ *Space, l map[string]float64) { l["d"] = 0.05 },
	} {
		other := map[string]float64{"a": 0.008, "b": 0.006, "c": 0.0005, "d": 0.0002}
		sp := space
		change(&sp, other)
		l := &learner{bench{lost: other, bytes: 1000}}
		if best := run(t, &Search{Goal: s.Goal, Space: sp, Lab: l}); best == nil || len(best.Learned) > 0 || len(best.Operators) == 0 {
			t.Errorf("%s: %+v of %q", name, best, l.tries)
		}
		if slices.ContainsFunc(l.tries, func(s string) bool { return s == "INT8, blocks learned" }) {
			t.Errorf("%s: tried %q", name, l.tries)
		}
	}
}

// TestShrinkLeavesLearned: 4 bits begin with a trial whose blocks were not learned.
func TestShrinkLeavesLearned(t *testing.T) {
	lost := map[string]float64{"a": 0.008, "b": 0.006, "c": 0.0001, "d": 0.0001}
	l := &learner{bench{lost: lost, bytes: 1000}}
	s := &Search{Goal: report.Goal{MaxLoss: 0.01, MaxBytes: 3500}, Space: Space{Targets: []quant.Target{quant.ORTCPU}, Static: true, Conv: true, Linear: true, Learns: true}, Lab: l}
	run(t, s)
	for _, x := range s.Trials {
		if len(x.Learned) > 0 && slices.ContainsFunc(x.Operators, func(o string) bool { return o[len(o)-4:] == "int4" }) {
			t.Errorf("learned again for %+v", x)
		}
	}
}

// mixedUnits is a lab with convolutions, one of which has no form in 4 bits.
type mixedUnits struct{ bench }

func (m *mixedUnits) Units(ctx context.Context, t quant.Target) ([]Unit, error) {
	units, err := m.bench.Units(ctx, t)
	for i := range units {
		units[i].Linear, units[i].Four = false, units[i].Names[0] != "b"
	}
	return units, err
}

// TestShrinkConvolutions: a size is met by 4 bits for convolutions that have such a form.
func TestShrinkConvolutions(t *testing.T) {
	m := &mixedUnits{bench{lost: map[string]float64{"a": 0.004, "b": 0.0001, "c": 0.0002, "d": 0.0003}, bytes: 1000}}
	s := &Search{Goal: report.Goal{MaxLoss: 0.01, MaxBytes: 3300}, Space: Space{Targets: []quant.Target{quant.ORTCPU}, Static: true, Conv: true}, Lab: m}
	best := run(t, s)
	if best == nil || best.Bytes > 3300 || !slices.Equal(best.Operators, []string{"c=int4", "d=int4"}) {
		t.Fatalf("%+v of %q", best, m.tries)
	}
}
