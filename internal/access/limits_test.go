package access

import (
	"fmt"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	l := NewLimiter(2, 3)
	now := time.Unix(1000, 0)
	for i := range 3 {
		if ok, _ := l.Allow("a", now); !ok {
			t.Fatalf("request %d of a burst of 3 was refused", i)
		}
	}
	ok, wait := l.Allow("a", now)
	if ok || wait != 500*time.Millisecond {
		t.Errorf("the fourth: %v, wait %v", ok, wait)
	}
	if ok, _ := l.Allow("b", now); !ok {
		t.Error("another client was refused")
	}
	// Those refused cost nothing.
	if ok, wait := l.Allow("a", now.Add(wait)); !ok {
		t.Errorf("after the wait it said: %v more", wait)
	}
	if ok, _ := NewLimiter(0.5, 0).Allow("a", now); !ok {
		t.Error("less than one a second allows none")
	}
	var none *Limiter
	if ok, _ := none.Allow("a", now); !ok || none.Len() != 0 || NewLimiter(0, 5) != nil {
		t.Error("no limit limits")
	}
}

// Clients without number do not take memory without end.
func TestLimiterIsBounded(t *testing.T) {
	l := NewLimiter(1, 1)
	l.max = 100
	now := time.Unix(1000, 0)
	l.Allow("first", now)
	for i := range 1000 {
		l.Allow(fmt.Sprint(i), now)
		l.Allow("first", now) // is there all the time
	}
	if n := l.Len(); n != 100 || l.order.Len() != 100 {
		t.Errorf("%d buckets", n)
	}
	if ok, _ := l.Allow("first", now); ok {
		t.Error("a client that was there all the time got a new bucket")
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7:80": "192.0.2.7", "[::ffff:192.0.2.7]:80": "192.0.2.7", "[2001:db8:1:2:3::4]:80": "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::5]:81": "2001:db8:1:2::/64", "[fe80::1%eth0]:80": "fe80::/64", "@": "@", "": "",
	} {
		if got := Address(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}
