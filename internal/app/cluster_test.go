package app

import (
	"net"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"

	"github.com/fewbit/fewbit/internal/jobs"
)

// TestJobsInACluster: two servers share a NATS server and a data directory; a
// job that one takes in may be done by either.
func TestJobsInACluster(t *testing.T) {
	t.Parallel()
	needEngine(t)
	ns, err := natsd.NewServer(&natsd.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	defer ns.Shutdown()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	set := func(c *Config) { c.NATSURL = ns.ClientURL() }
	one := start(t, "", set)
	two := start(t, one.cfg.DataDir, set)
	one.seed()
	spec := longJob()
	spec.Promote = false
	id := one.submit(spec)
	if st := two.finished(id); st.Status != jobs.Succeeded {
		t.Fatalf("job: %+v", st)
	}
	for _, s := range []*server{one, two} {
		if vs := s.versions("m"); len(vs) != 2 {
			t.Errorf("versions: %+v", vs)
		}
		s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, nil)
	}
	// What one has promoted, the other takes up when told to.
	one.do("POST", "/models/m/promote", map[string]string{"version": "2"}).into(t, 200, nil)
	two.do("POST", "/v2/repository/models/m/load", nil).into(t, 200, nil)
	for _, s := range []*server{one, two} {
		if v := s.answers(); v != "2" {
			t.Errorf("version %s answers", v)
		}
	}
	// The end of one server is not the end of the other.
	if err := one.stop(); err != nil {
		t.Error(err)
	}
	if st := two.finished(id); st.Status != jobs.Succeeded {
		t.Errorf("job: %+v", st)
	}
}

// TestUploadBreaksOff: a client that leaves in the middle leaves nothing.
func TestUploadBreaksOff(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	for _, path := range []string{"/models/m", "/datasets/d"} {
		conn, err := net.Dial("tcp", s.base[len("http://"):])
		if err != nil {
			t.Fatal(err)
		}
		body := mlp(t)
		if _, err := conn.Write(append([]byte("PUT "+path+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"), body...)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the server has begun to write
		conn.Close()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := leftovers(t, s.cfg.DataDir)
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left in the data directory: %q", left)
		}
	}
	s.refused(t, s.do("GET", "/models/m", nil), 404)
	s.refused(t, s.do("GET", "/datasets/d", nil), 404)
}
