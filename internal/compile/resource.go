package compile

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/legation-io/legation/internal/distribute"
)

// resources collects what one compilation makes. The first error stays.
type resources struct {
	all []*distribute.Resource
	err error
}

var deterministic = proto.MarshalOptions{Deterministic: true}

// validated is what go-control-plane generates: Envoy's own constraints.
type validated interface {
	proto.Message
	ValidateAll() error
}

func (r *resources) add(typ, name string, m validated) {
	if r.err != nil {
		return
	}
	if err := m.ValidateAll(); err != nil {
		r.err = fmt.Errorf("compile %s %s: %w", typ, name, err)
		return
	}
	body, err := deterministic.Marshal(m)
	if err != nil {
		r.err = fmt.Errorf("compile %s %s: %w", typ, name, err)
		return
	}
	r.all = append(r.all, distribute.NewResource(typ, name, body))
}

// pack puts an extension's configuration into an Any, the same bytes for the
// same message.
func pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, deterministic); err != nil {
		// Only invalid UTF-8 fails, and every string here was checked.
		panic(fmt.Sprintf("compile: marshal %T: %v", m, err))
	}
	return a
}
