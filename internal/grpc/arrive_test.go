package grpc

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
)

// rows is a right request of n rows of two numbers, as a message.
func rows(t testing.TB, n int) []byte {
	t.Helper()
	b, err := proto.Marshal(&pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, int64(n), 2)}, RawInputContents: [][]byte{make([]byte, 8*n)}})
	if err != nil {
		t.Fatal(err)
	}
	return message(0, uint32(len(b)), b)
}

// send writes data in frames as large as one may be.
func (w *wire) send(t *testing.T, stream uint32, end bool, data []byte) {
	t.Helper()
	const frame = 16 << 10
	for len(data) > frame {
		if err := w.WriteData(stream, false, data[:frame]); err != nil {
			t.Fatal(err)
		}
		data = data[frame:]
	}
	if err := w.WriteData(stream, end, data); err != nil {
		t.Fatal(err)
	}
}

// trailer reads the last headers of a stream.
func (w *wire) trailer(t *testing.T, stream uint32) map[string]string {
	t.Helper()
	for {
		f, err := w.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.MetaHeadersFrame); ok && f.StreamID == stream && f.StreamEnded() {
			fields := map[string]string{}
			for _, h := range f.Fields {
				fields[h.Name] = h.Value
			}
			return fields
		}
	}
}

// heldIs waits until n bytes of the budget for bodies are taken.
func heldIs(t *testing.T, h *fhttp.Server, n int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		free := fhttp.MaxBodiesInFlight - n
		if h.Hold(free) == nil {
			over := h.Hold(1) == nil
			h.Free(free)
			if !over {
				return
			}
			h.Free(1)
		}
		if time.Now().After(end) {
			t.Fatalf("not %d bytes are accounted for", n)
		}
	}
}

// The bytes of messages that are arriving count as those of HTTP's bodies do: what
// would pass the budget is told to come again, and what is there is answered.
func TestArrivingIsBounded(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{})
	const room = 100 << 10
	if err := m.server.Hold(fhttp.MaxBodiesInFlight - room); err != nil {
		t.Fatal(err)
	}
	body := rows(t, 7500)
	first, second := dialWire(t, addr), dialWire(t, addr)
	first.call(t, 1, inferMethod, false)
	first.send(t, 1, false, body[:len(body)-1])
	heldIs(t, m.server, fhttp.MaxBodiesInFlight-room+int64(len(body)-1))
	second.call(t, 1, inferMethod, false)
	second.send(t, 1, false, body[:len(body)-1])
	last := second.trailer(t, 1)
	if last["grpc-status"] != fmt.Sprint(uint32(codes.Unavailable)) || !strings.Contains(last["grpc-message"], "MiB of request bodies") || last["retry-after"] != "1" || last["grpc-retry-pushback-ms"] != "1000" {
		t.Errorf("past the budget: %v", last)
	}
	b, err := base64.RawStdEncoding.DecodeString(last["grpc-status-details-bin"])
	if err != nil {
		t.Fatal(err)
	}
	var details spb.Status
	if err := proto.Unmarshal(b, &details); err != nil {
		t.Fatal(err)
	}
	wantRetry(t, status.FromProto(&details), time.Second)
	first.send(t, 1, true, body[len(body)-1:])
	if last := first.trailer(t, 1); last["grpc-status"] != "0" {
		t.Errorf("what was there: %v", last)
	}
	m.server.Free(fhttp.MaxBodiesInFlight - room)
	heldIs(t, m.server, 0)
}

// A message larger than what may be in flight at once comes in by the windows that
// grpc opens for it, and is counted to its end.
func TestLargeMessage(t *testing.T) {
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	r := &pb.ModelInferRequest{ModelName: "m", Inputs: []*pb.ModelInferRequest_InferInputTensor{input("FP32", nil, 100_000, 2)}, RawInputContents: [][]byte{make([]byte, 800_000)}}
	for range 3 {
		if _, err := c.ModelInfer(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	heldIs(t, m.server, 0)
}

// On a stream only what is not whole counts, whatever frames it comes in; a
// message that is begun and not ended is given up, with its stream.
func TestArrivingOnStreams(t *testing.T) {
	const patience = time.Second
	addr, m := serve(t, echoes(tensor.Float32), nil, Options{ReceiveTimeout: patience})
	body := rows(t, 1)
	w := dialWire(t, addr)
	w.call(t, 1, pb.GRPCInferenceService_ModelStreamInfer_FullMethodName, false)
	for i := range 60 { // some split, some padded, some two at once
		var err error
		switch i % 3 {
		case 0:
			err = w.WriteDataPadded(1, false, body, make([]byte, i))
		case 1:
			_ = w.WriteDataPadded(1, false, body[:i%len(body)], make([]byte, 255))
			err = w.WriteData(1, false, body[i%len(body):])
		case 2:
			err = w.WriteData(1, false, append(body[:len(body):len(body)], body...))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	answers := 0
	for answers < 80 {
		f, err := w.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.DataFrame); ok {
			answers += bytes.Count(f.Data(), []byte("FP32_out"))
		}
	}
	time.Sleep(patience * 5 / 4) // it may rest
	heldIs(t, m.server, 0)
	if err := w.WriteData(1, false, body); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteDataPadded(1, false, body[:7], make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	heldIs(t, m.server, 7)
	begin := time.Now()
	if last := w.trailer(t, 1); last["grpc-status"] != fmt.Sprint(uint32(codes.DeadlineExceeded)) || !strings.Contains(last["grpc-message"], "did not arrive") {
		t.Errorf("half a message: %v", last)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it was given up after %v", took)
	}
	heldIs(t, m.server, 0)
}

// wantRetry checks that a refusal says when to come again.
func wantRetry(t *testing.T, st *status.Status, after time.Duration) {
	t.Helper()
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			if got := r.GetRetryDelay().AsDuration(); got < after || got > time.Minute {
				t.Errorf("%v: retry in %v, want %v or more", st, got, after)
			}
			return
		}
	}
	t.Errorf("%v has no RetryInfo", st)
}

// What HTTP refuses with Retry-After, 503 and 429, has RetryInfo here; what is
// wrong for good has none.
func TestRetryInfo(t *testing.T) {
	gate := make(chan struct{})
	held := echoes(tensor.Float32)
	held.Gate = gate
	for name, x := range map[string]struct {
		model fake.Model
		set   func(*fhttp.Config)
		calls int // before the one that is refused
		key   string
		code  codes.Code
	}{
		"too many requests": {held, func(c *fhttp.Config) { c.MaxInFlight = 1 }, 1, "", codes.Unavailable},
		"the rate":          {echoes(tensor.Float32), func(c *fhttp.Config) { c.Rate, c.RateBurst = 0.5, 1 }, 1, "", codes.ResourceExhausted},
		"too many keys":     {echoes(tensor.Float32), func(c *fhttp.Config) { c.Keys = bothKeys(t) }, 20, "wrong", codes.ResourceExhausted},
	} {
		addr, m := serve(t, x.model, x.set, Options{})
		c := dial(t, addr, insecure.NewCredentials())
		ctx := t.Context()
		if x.key != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", x.key)
		}
		waiting := make(chan error, x.calls)
		for range x.calls {
			go func() { _, err := c.ModelInfer(ctx, right()); waiting <- err }()
			if x.model.Gate == nil {
				<-waiting
			}
		}
		if x.model.Gate != nil {
			if err := m.engine.WaitRunning(ctx, 1); err != nil {
				t.Fatal(err)
			}
		}
		var trailer metadata.MD
		_, err := c.ModelInfer(ctx, right(), grpc.Trailer(&trailer))
		if status.Code(err) != x.code {
			t.Errorf("%s: %v, want %v", name, err, x.code)
		}
		wantRetry(t, status.Convert(err), time.Second)
		if x.model.Gate != nil && len(trailer["grpc-retry-pushback-ms"]) == 0 {
			t.Errorf("%s: trailer %v", name, trailer)
		}
		if x.model.Gate != nil {
			close(gate)
			if err := <-waiting; err != nil {
				t.Error(err)
			}
		}
	}
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	_, err := dial(t, addr, insecure.NewCredentials()).ModelInfer(t.Context(), &pb.ModelInferRequest{ModelName: "none"})
	if st := status.Convert(err); st.Code() != codes.NotFound || len(st.Details()) > 0 {
		t.Errorf("%v, details %v", err, st.Details())
	}
}

// conn is a connection that reads b.
type conn struct {
	net.Conn
	io.Reader
}

func (c conn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// FuzzMeter: whatever comes over a connection reaches grpc as it was, and when
// grpc sees headers the meter knows of them and of nothing behind.
func FuzzMeter(f *testing.F) {
	frames := func(write func(*http2.Framer)) []byte {
		var b bytes.Buffer
		b.WriteString(http2.ClientPreface)
		write(http2.NewFramer(&b, nil))
		return b.Bytes()
	}
	head := func(fr *http2.Framer, stream uint32, end bool) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("\x82\x86"), EndHeaders: end})
	}
	f.Add(frames(func(fr *http2.Framer) {
		_ = fr.WriteSettings()
		head(fr, 1, true)
		_ = fr.WriteData(1, false, []byte("hello"))
		head(fr, 3, false)
		_ = fr.WriteContinuation(3, true, []byte("\x84"))
		_ = fr.WriteDataPadded(3, true, []byte("more"), make([]byte, 9))
		_ = fr.WriteData(1, true, nil)
	}), uint8(0))
	f.Add([]byte(http2.ClientPreface+"\x00\x00\x00\x01\x04\x80\x00\x00\x01\x00\x00\x01\x00\x08\x00\x00\x00\x01\xff"), uint8(3))
	f.Add([]byte("GET / HTTP/1.1\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, how uint8) {
		var r io.Reader = bytes.NewReader(b)
		switch how % 4 {
		case 1:
			r = iotest.OneByteReader(r)
		case 2:
			r = iotest.HalfReader(r)
		case 3:
			r = iotest.DataErrReader(r)
		}
		read := func() *meter {
			return &meter{Conn: conn{Reader: r}, left: len(http2.ClientPreface), calls: map[uint32]*call{}}
		}
		if got, err := io.ReadAll(iotest.HalfReader(read())); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("read %x, %v", got, err)
		}
		r = bytes.NewReader(b)
		m := read()
		in := bufio.NewReaderSize(m, 16+int(how))
		if _, err := in.Discard(len(http2.ClientPreface)); err != nil {
			return
		}
		fr := http2.NewFramer(io.Discard, in)
		for {
			frame, err := fr.ReadFrame()
			if err != nil {
				return
			}
			h := frame.Header()
			if h.Type == http2.FrameHeaders && (m.last != h.StreamID || in.Buffered() > 0) {
				t.Fatalf("headers of stream %d are read, the meter knows of %d, %d bytes follow", h.StreamID, m.last, in.Buffered())
			}
		}
	})
}
