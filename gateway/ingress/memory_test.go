package ingress

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/encoding"
)

// A request of 1 MiB takes 36 MiB once it is decoded: seven at a time took all the memory that a gateway has.
func TestDecoding_FewLargeRequestsAreDecodedAtATime(t *testing.T) {
	t.Parallel()
	codec := encoding.GetCodecV2("proto")
	if _, ours := codec.(protoCodec); !ours {
		t.Errorf("gRPC decodes with %T", codec)
	}
	var at, most atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			defer BeginDecoding(MaxBody)()
			now := at.Add(1)
			for before := most.Load(); now > before && !most.CompareAndSwap(before, now); before = most.Load() {
			}
			for range 100 {
				runtime.Gosched() // as it happens to a decoder that takes its time
			}
			BeginDecoding(FreeRequest)() // a small one does not wait, else this would never end
			at.Add(-1)
		})
	}
	all.Wait()
	if most.Load() > maxDecoding {
		t.Errorf("%d at a time", most.Load())
	}
}
