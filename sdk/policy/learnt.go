package policy

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
)

const maxLearnt = 1024

// learnt keeps the terms of what comes back. Reading takes no lock; a new one
// is learnt by copying. When it is full it begins anew, so that its size is
// bounded whoever asks.
type learnt[K comparable] struct {
	known    atomic.Pointer[map[K]*ast.Term]
	learning sync.Mutex // guards replacing known
}

func (l *learnt[K]) term(key K, build func(K) *ast.Term) *ast.Term {
	if m := l.known.Load(); m != nil {
		if t, ok := (*m)[key]; ok {
			return t
		}
	}
	t := build(key)
	l.learning.Lock()
	defer l.learning.Unlock()
	next := map[K]*ast.Term{}
	if m := l.known.Load(); m != nil && len(*m) < maxLearnt {
		next = maps.Clone(*m)
	}
	next[key] = t
	l.known.Store(&next)
	return t
}
