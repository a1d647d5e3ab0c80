package pipeline

import (
	"errors"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
)

// closing is a session that counts how often it is closed.
type closing struct {
	engine.Session
	count int
}

func (c *closing) Close() error { c.count++; return nil }

// TestOpenPair: both sessions or none, at once and one after the other.
func TestOpenPair(t *testing.T) {
	bad := errors.New("cannot be opened")
	for name, l := range map[string]*limits{"at once": nil, "under a ceiling": {}} {
		for _, fails := range []struct{ first, second bool }{{}, {first: true}, {second: true}, {true, true}} {
			var made [2]*closing
			open := func(i int, fail bool) func() (engine.Session, error) {
				return func() (engine.Session, error) {
					if fail {
						return nil, bad
					}
					made[i] = &closing{}
					return made[i], nil
				}
			}
			r := &run{lab: &Lab{limits: l}}
			a, b, err := r.openPair(open(0, fails.first), open(1, fails.second))
			if fails.first || fails.second {
				if !errors.Is(err, bad) || a != nil || b != nil {
					t.Errorf("%s, %v: %v, %v, %v", name, fails, a, b, err)
				}
				for i, s := range made {
					if s != nil && s.count != 1 {
						t.Errorf("%s, %v: session %d was closed %d times", name, fails, i, s.count)
					}
				}
				continue
			}
			if err != nil || a != made[0] || b != made[1] || made[0].count+made[1].count != 0 {
				t.Errorf("%s: %v, %v, %v", name, a, b, err)
			}
		}
	}
}
