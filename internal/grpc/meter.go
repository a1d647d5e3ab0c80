package grpc

import (
	"encoding/binary"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
)

// metering has every connection's frames counted. It is around what makes a
// connection secure, so that the frames are in clear.
type metering struct {
	credentials.TransportCredentials
}

func (m metering) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := m.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return c, info, err
	}
	return &meter{Conn: c, left: len(http2.ClientPreface), calls: map[uint32]*call{}}, info, nil
}

func (m metering) Clone() credentials.TransportCredentials {
	return metering{m.TransportCredentials.Clone()}
}

// meter reads the frames of a connection (RFC 9113, 4.1) on their way to grpc and
// charges the bytes of each message to the call it belongs to, as they arrive:
// grpc itself tells of a message when all of it is in memory.
//
// A frame of headers ends what one Read returns. So when grpc hands a call to
// Server.receiving, which it does before it reads on, last is the call's stream.
type meter struct {
	net.Conn
	over []byte // read, and not handed out: what followed a frame of headers
	keep []byte // the memory of over
	err  error  // that came with over

	head   [frameHead]byte
	have   int    // bytes of head
	left   int    // bytes of the frame, or of the preface, that are still to come
	stream uint32 // of the frame
	padded bool   // its next byte is the length of its padding
	cut    bool   // it is one of headers
	last   uint32 // stream of the last headers

	mu    sync.Mutex
	calls map[uint32]*call
}

const (
	frameHead = 9
	// streamID masks the reserved bit of a stream's number.
	streamID = 1<<31 - 1
	// maxKeep is the most memory that a silent connection keeps for over.
	maxKeep = 4 << 10
)

// Read is only called by the goroutine that reads the connection.
func (m *meter) Read(p []byte) (int, error) {
	n, err := 0, error(nil)
	if len(m.over) > 0 {
		n = copy(p, m.over)
		m.over = m.over[n:]
	} else if m.err == nil {
		n, err = m.Conn.Read(p)
	}
	if len(m.over) == 0 && err == nil {
		err, m.err = m.err, nil
	}
	k := m.walk(p[:n])
	if k == n {
		if len(m.over) == 0 && cap(m.keep) > maxKeep {
			m.keep = nil
		}
		return n, err
	}
	// What is left of p comes before what is left of over, which it came from.
	if len(m.over) > 0 {
		m.over = m.keep[len(m.keep)-len(m.over)-(n-k):]
	} else {
		m.keep = append(m.keep[:0], p[k:n]...)
		m.over, m.err = m.keep, err
	}
	return k, nil
}

// walk follows the frames in b and returns how much of it may be handed out.
func (m *meter) walk(b []byte) int {
	for i := 0; i < len(b); {
		if m.left > 0 {
			if m.padded {
				m.padded = false
				m.data(m.left - 1 - int(b[i]))
			}
			k := min(m.left, len(b)-i)
			i, m.left = i+k, m.left-k
		} else {
			k := copy(m.head[m.have:], b[i:])
			i, m.have = i+k, m.have+k
			if m.have < frameHead {
				return i
			}
			m.have = 0
			m.frame()
		}
		if m.left == 0 && m.cut {
			m.cut = false
			return i
		}
	}
	return len(b)
}

// frame begins the frame of head.
func (m *meter) frame() {
	m.left = int(m.head[0])<<16 | int(m.head[1])<<8 | int(m.head[2])
	m.stream = binary.BigEndian.Uint32(m.head[5:]) & streamID
	switch http2.FrameType(m.head[3]) {
	case http2.FrameData:
		if m.padded = http2.Flags(m.head[4]).Has(http2.FlagDataPadded) && m.left > 0; !m.padded {
			m.data(m.left)
		}
	case http2.FrameHeaders:
		m.last, m.cut = m.stream, true
	case http2.FrameContinuation:
		m.cut = true
	}
}

// data charges n bytes to the call of the frame.
func (m *meter) data(n int) {
	m.mu.Lock()
	c := m.calls[m.stream]
	m.mu.Unlock()
	if c != nil && n > 0 {
		c.charge(int64(n))
	}
}

// opened says whose the stream of the last headers is, until forget.
func (m *meter) opened(c *call) (forget func()) {
	stream := m.last
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[stream] = c
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.calls, stream)
	}
}

// RemoteAddr also leads whoever sees a call to its meter.
func (m *meter) RemoteAddr() net.Addr { return meteredAddr{m.Conn.RemoteAddr(), m} }

type meteredAddr struct {
	net.Addr
	m *meter
}
