//go:build cuda

package device

/*
#include <cuda.h>
*/
import "C"

import (
	"errors"
	"sync/atomic"
	"unsafe"
)

// Graph is work that was recorded once and is launched as a whole, without the cost
// of launching each kernel. It holds the addresses it was recorded with.
type Graph struct {
	exec  C.CUgraphExec
	nodes int
	d     *Device
	gone  atomic.Bool
}

// Capture records what f queues on s, and on streams that wait for events of s and
// that s waits for again, instead of doing it. f must not allocate device memory,
// synchronize, or copy to or from memory that is not pinned. f runs inside Do.
// When f or CUDA fails, the stream is usable again.
func (s *Stream) Capture(f func() error) (*Graph, error) {
	g := &Graph{d: s.d}
	err := s.d.Do(func() error {
		stream := C.CUstream(unsafe.Pointer(s.s.C()))
		// Thread-local: other threads may allocate meanwhile.
		if err := s.d.status("begin capture", C.cuStreamBeginCapture(stream, C.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)); err != nil {
			return err
		}
		failed := f()
		var graph C.CUgraph
		err := s.d.status("end capture", C.cuStreamEndCapture(stream, &graph))
		if graph != nil {
			defer C.cuGraphDestroy(graph)
		}
		if err := errors.Join(failed, err); err != nil {
			return err
		}
		var n C.size_t
		if err := s.d.status("count nodes", C.cuGraphGetNodes(graph, nil, &n)); err != nil {
			return err
		}
		g.nodes = int(n)
		return s.d.status("instantiate graph", C.cuGraphInstantiateWithFlags(&g.exec, graph, 0))
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Nodes is how many kernels, copies and fills the graph holds.
func (g *Graph) Nodes() int { return g.nodes }

// Launch queues the graph on s. One graph runs once at a time: a second launch waits
// for the first, on whichever stream.
func (g *Graph) Launch(s *Stream) error {
	return g.d.Do(func() error {
		return g.d.status("launch graph", C.cuGraphLaunch(g.exec, C.CUstream(unsafe.Pointer(s.s.C()))))
	})
}

// Close gives the graph up; a launch that runs is still completed.
func (g *Graph) Close() error {
	if g.gone.Swap(true) || g.d.over() {
		return nil
	}
	return g.d.Do(func() error { return g.d.status("destroy graph", C.cuGraphExecDestroy(g.exec)) })
}
