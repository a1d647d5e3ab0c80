package telemetry

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

// clock is a time that a test moves.
type clock struct{ at time.Time }

func newClock() *clock                { return &clock{time.Unix(1000, 0)} }
func (c *clock) now() time.Time       { return c.at }
func (c *clock) pass(seconds float64) { c.at = c.at.Add(time.Duration(seconds * 1e9)) }

func counted(uuid string, joules float64) []GPU { return []GPU{{UUID: uuid, EnergyJ: &joules}} }

func powered(uuid string, watts float64) []GPU { return []GPU{{UUID: uuid, PowerW: &watts}} }

func close9(a, b float64) bool { return math.Abs(a-b) <= 1e-9*max(1, math.Abs(b)) }

func checkEnergy(t *testing.T, e *Energy, name string, joules, seconds float64, requests, runs int64, source string) {
	t.Helper()
	m := e.Model(name, "1")
	if m == nil {
		t.Fatalf("%s: nothing", name)
	}
	if !close9(m.Joules, joules) || !close9(m.Seconds, seconds) || m.Requests != requests || m.Runs != runs || m.Source != source {
		t.Errorf("%s: %+v, want %v J in %v s for %d requests in %d runs by %s", name, *m, joules, seconds, requests, runs, source)
	}
	if requests > 0 && !close9(*m.PerRequest, joules/float64(requests)) || runs > 0 && !close9(*m.PerRun, joules/float64(runs)) {
		t.Errorf("%s: %v J a request, %v J a run", name, *m.PerRequest, *m.PerRun)
	}
}

// The energy of the time that something ran is shared by time; idle time is nobody's.
func TestEnergyIsSharedByTime(t *testing.T) {
	c := newClock()
	e := NewEnergy(c.now)
	e.Sample(counted("G", 5000))
	c.pass(.2)
	endA := e.Run("G", "a", "1", 4)
	c.pass(.2)
	endB := e.Run("G", "b", "1", 1)
	c.pass(.1)
	endA(true) // a: 0.3 s
	c.pass(.2)
	endB(true) // b: 0.3 s; together 0.5 s
	c.pass(.3)
	e.Sample(counted("G", 5100)) // 100 J in 1 s, half of it busy
	checkEnergy(t, e, "a", 25, .3, 4, 1, "counter")
	checkEnergy(t, e, "b", 25, .3, 1, 1, "counter")

	// A run over three windows: its energy is in each, its request in the last.
	end := e.Run("G", "a", "1", 2)
	c.pass(1)
	e.Sample(counted("G", 5400))
	checkEnergy(t, e, "a", 325, 1.3, 4, 1, "counter")
	c.pass(1)
	e.Sample(counted("G", 5500))
	c.pass(.5)
	end(true)
	end(true) // does nothing more
	c.pass(.5)
	e.Sample(counted("G", 5600))
	checkEnergy(t, e, "a", 475, 2.8, 6, 2, "counter")
	// A run that failed took energy and answered nothing.
	end = e.Run("G", "a", "1", 5)
	c.pass(1)
	end(false)
	e.Sample(counted("G", 5610))
	checkEnergy(t, e, "a", 485, 3.8, 6, 2, "counter")
	// Nothing runs.
	c.pass(1)
	e.Sample(counted("G", 9999))
	checkEnergy(t, e, "a", 485, 3.8, 6, 2, "counter")
	// Another GPU is another matter; readings at the same time change nothing.
	done := e.Run("H", "b", "1", 1)
	e.Sample(counted("G", 9999))
	c.pass(1)
	done(true)
	e.Sample(counted("G", 20000))
	checkEnergy(t, e, "b", 25, .3, 1, 1, "counter")
	e.Forget("b", "1")
	if e.Model("b", "1") != nil || e.Model("never", "1") != nil {
		t.Error("energy of a model that has none")
	}
}

func TestEnergyFromPower(t *testing.T) {
	c := newClock()
	e := NewEnergy(c.now)
	e.Sample(powered("G", 100))
	end := e.Run("G", "a", "1", 1)
	c.pass(2)
	e.Sample(powered("G", 300)) // the mean is 200 W
	end(true)
	checkEnergy(t, e, "a", 400, 2, 0, 0, "power")
	// The mean of a second is preferred.
	end = e.Run("G", "a", "1", 1)
	watts, mean := 999., 500.
	c.pass(1)
	e.Sample([]GPU{{UUID: "G", PowerW: &watts, PowerAverageW: &mean}})
	end(true)
	c.pass(1)
	e.Sample([]GPU{{UUID: "G", PowerW: &watts, PowerAverageW: &mean}})
	checkEnergy(t, e, "a", 400+400, 3, 2, 2, "power")
}

// Energy and requests of a window that cannot be measured are both left out.
func TestEnergyUnmeasured(t *testing.T) {
	c := newClock()
	e := NewEnergy(c.now)
	run := func(requests int) {
		end := e.Run("G", "a", "1", requests)
		c.pass(1)
		end(true)
	}
	run(100) // before the first reading
	e.Sample(counted("G", 7000))
	if m := e.Model("a", "1"); m != nil {
		t.Errorf("%+v of a time without a reading", m)
	}
	run(1)
	e.Sample(counted("G", 7050))
	checkEnergy(t, e, "a", 50, 1, 1, 1, "counter")
	run(100)
	e.Sample(counted("G", 10)) // the driver was loaded anew
	run(100)
	e.Sample([]GPU{{UUID: "G"}}) // nothing can be read
	run(100)
	e.Sample(counted("G", 100))
	e.Sample([]GPU{{}}) // a lost GPU has no UUID
	checkEnergy(t, e, "a", 50, 1, 1, 1, "counter")
	run(1)
	e.Sample(counted("G", 130))
	checkEnergy(t, e, "a", 80, 2, 2, 2, "counter")
}

// Whatever happens when: no more is given out than the counter counted, all of it
// where something always ran, and shares follow time.
func TestEnergyIsConserved(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := newClock()
		e := NewEnergy(c.now)
		total := 0.
		e.Sample(counted("G", 0))
		always := seed%2 == 0
		if always {
			e.Run("G", "always", "1", 1)
		}
		var ends []func(bool)
		for range 300 {
			switch r.IntN(4) {
			case 0:
				ends = append(ends, e.Run("G", string(rune('a'+r.IntN(3))), "1", 1))
			case 1:
				if len(ends) > 0 {
					i := r.IntN(len(ends))
					ends[i](true)
					ends = append(ends[:i], ends[i+1:]...)
				}
			case 2:
				total += r.Float64() * 100
				e.Sample(counted("G", total))
			}
			c.pass(r.Float64() / 4)
		}
		before := total
		total += 10
		e.Sample(counted("G", total))
		given := 0.
		for _, name := range []string{"a", "b", "c", "always"} {
			if m := e.Model(name, "1"); m != nil {
				given += m.Joules
			}
		}
		if given > total*(1+1e-9) || always && given < before*(1-1e-9) {
			t.Errorf("seed %d: %v J given out of %v", seed, given, total)
		}
	}
}

func TestEnergyInSnapshot(t *testing.T) {
	clk := newClock()
	joules := 0.
	c := New(Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: counting{&joules}, Energy: NewEnergy(clk.now)})
	c.Model("m", "1", time.Second)
	c.Model("cpu", "1", time.Second)
	c.Sample(time.Now())
	end := c.Energy().Run("G", "m", "1", 8)
	clk.pass(1)
	end(true)
	joules = 16
	c.Sample(time.Now())
	b, err := json.Marshal(c.Snapshot().Models)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"joules":16,"run_seconds":1,"requests":8,"runs":1,"joules_per_request":2,"joules_per_run":16,"source":"counter"}`) || strings.Count(string(b), `"energy"`) != 1 {
		t.Errorf("%s", b)
	}
	c.Forget("m", "1")
	if c.Energy().Model("m", "1") != nil {
		t.Error("energy of a forgotten version")
	}
}

type counting struct{ joules *float64 }

func (counting) Open() error            { return nil }
func (c counting) Read() ([]GPU, error) { return counted("G", *c.joules), nil }
func (counting) Close() error           { return nil }

func TestEnergyConcurrently(t *testing.T) {
	e := NewEnergy(nil)
	e.Sample(powered("G", 100))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				e.Run("G", "a", "1", 1)(true)
				e.Sample(powered("G", 100))
				e.Model("a", "1")
			}
		})
	}
	wg.Wait()
	e.Sample(powered("G", 100))
	if m := e.Model("a", "1"); m == nil || m.Runs > 1600 || m.Joules < 0 {
		t.Errorf("%+v", m)
	}
}

// The packages' energy while a version ran goes to it by time, and to its
// requests by their number; it says of which time it tells.
func TestCPUEnergy(t *testing.T) {
	sys, clk := machine(), newClock()
	c := New(Options{Sys: sys, Proc: procFS(), GPU: absent{}, CPUEnergy: NewEnergy(clk.now)})
	c.Model("m", "1", time.Second)
	joules := 0
	sample := func(more int) { // of package 0; package 1 stands still
		joules += more
		sys["class/powercap/intel-rapl:0/energy_uj"] = file(strconv.Itoa(1000000*(1+joules)) + "\n")
		c.Sample(clk.now())
	}
	model := func() ModelLatency {
		c.taken = time.Now() // or Snapshot would sample at another time than the clock's
		return c.Snapshot().Models[0]
	}
	sample(0)
	clk.pass(1)
	sample(10)
	if m := model(); m.CPUEnergy != nil || !strings.Contains(m.Reasons["cpu_energy"], "has not run") {
		t.Errorf("before it ran: %+v, %v", m.CPUEnergy, m.Reasons)
	}
	if w := c.cpu.PowerWindowS; w == nil || *w != 1 {
		t.Errorf("window of the power: %v", w)
	}
	from := clk.now()
	end := c.CPUEnergy().Run(Packages, "m", "1", 3)
	clk.pass(.5)
	end(true)
	clk.pass(1.5)
	sample(40) // 40 J in 2 s, of which it ran 0.5
	m := model()
	if e := m.CPUEnergy; e == nil || !close9(e.Joules, 10) || !close9(*e.PerRequest, 10./3) || !e.From.Equal(from) || !e.To.Equal(clk.now()) || e.Source != "counter" || m.Energy != nil || m.Reasons != nil {
		t.Errorf("%+v, %v", m.CPUEnergy, m.Reasons)
	}

	// A zone that appears makes a window incomplete: neither its energy counts nor its requests.
	sys["class/powercap/intel-rapl:3/name"], sys["class/powercap/intel-rapl:3/energy_uj"] = file("package-3\n"), file("5\n")
	c.CPUEnergy().Run(Packages, "m", "1", 100)(true)
	clk.pass(1)
	sample(7)
	clk.pass(1)
	sample(7)
	if e := model().CPUEnergy; !close9(e.Joules, 10) || e.Requests != 3 {
		t.Errorf("after an incomplete window: %+v", e)
	}

	// Only root may read: null, and the reason says what to do.
	c.opts.Sys = denied{sys}
	c.Forget("m", "1")
	c.Model("m", "1", time.Second)
	c.Sample(clk.now())
	if m := model(); m.CPUEnergy != nil || !strings.Contains(m.Reasons["cpu_energy"], "permission denied; let the server's user read") {
		t.Errorf("not readable: %+v, %v", m.CPUEnergy, m.Reasons)
	}
}
