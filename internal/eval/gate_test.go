package eval

import (
	"math"
	"testing"
)

func TestApart(t *testing.T) {
	for _, c := range []struct {
		got, bar float64
		texts    [2]string
	}{
		{.98123, .99, [2]string{"0.9812", "0.9900"}}, {.9990, .999999, [2]string{"0.999000", "0.999999"}}, {.98996, .99, [2]string{"0.98996", "0.99000"}},
		{math.NaN(), .99, [2]string{"NaN", "0.9900"}}, {1, 1, [2]string{"1.000000000", "1.000000000"}},
	} {
		if got := apart(c.got, c.bar); got[0] != c.texts[0] || got[1] != c.texts[1] {
			t.Errorf("%v, %v: %v", c.got, c.bar, got)
		}
	}
}
