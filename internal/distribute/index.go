package distribute

import "slices"

// scope is what one Scope holds, by type.
type scope struct {
	name   Scope
	tables map[string]*table
	refs   int // subscribers attached
}

// table is the resources of one type in one scope, and who watches them.
type table struct {
	scope     *scope
	typ       string
	resources map[string]*Resource
	watches   []*watch // all whose tables hold this one

	// The index, made when there are more than few watches; a scope of one
	// subscriber would pay more for it than for the rest.
	wild  []*watch
	named map[string][]*watch // nil is no index
}

const few = 8

// interested calls f for each watch that a change of the name touches; for
// some twice.
func (tb *table) interested(name string, f func(*watch)) {
	if tb.named == nil {
		for _, w := range tb.watches {
			if w.wildcard || w.has(name) {
				f(w)
			}
		}
		return
	}
	for _, w := range tb.named[name] {
		f(w)
	}
	for _, w := range tb.wild {
		f(w)
	}
}

func (e *Engine) scopeLocked(name Scope) *scope {
	sc := e.scopes[name]
	if sc == nil {
		sc = &scope{name: name, tables: make(map[string]*table)}
		e.scopes[name] = sc
	}
	return sc
}

func (sc *scope) table(typ string) *table {
	tb := sc.tables[typ]
	if tb == nil {
		tb = &table{scope: sc, typ: typ, resources: make(map[string]*Resource)}
		sc.tables[typ] = tb
	}
	return tb
}

// tidyLocked forgets a table, and then its scope, that nothing refers to.
func (e *Engine) tidyLocked(tb *table) {
	if len(tb.watches) == 0 && len(tb.resources) == 0 {
		delete(tb.scope.tables, tb.typ)
		e.tidyScopeLocked(tb.scope)
	}
}

func (e *Engine) tidyScopeLocked(sc *scope) {
	if sc.refs == 0 && len(sc.tables) == 0 {
		delete(e.scopes, sc.name)
	}
}

func (tb *table) addName(name string, w *watch) {
	if tb.named != nil {
		tb.named[name] = append(tb.named[name], w)
	}
}

func (tb *table) dropName(name string, w *watch) {
	list := without(tb.named[name], w)
	if len(list) > 0 {
		tb.named[name] = list
	} else {
		delete(tb.named, name)
	}
}

func (tb *table) addWild(w *watch) {
	if tb.named != nil {
		tb.wild = append(tb.wild, w)
	}
}

func (tb *table) dropWild(w *watch) { tb.wild = without(tb.wild, w) }

func (tb *table) index(w *watch) {
	if w.wildcard {
		tb.addWild(w)
	}
	for name := range w.named {
		tb.addName(name, w)
	}
}

// without removes w by swapping: order among watchers means nothing.
func without(list []*watch, w *watch) []*watch {
	i := slices.Index(list, w)
	if i < 0 {
		return list
	}
	last := len(list) - 1
	list[i], list[last] = list[last], nil
	return list[:last]
}

// joinLocked registers the watch's interests in the tables of the scopes.
func (e *Engine) joinLocked(w *watch, scopes []*scope) {
	w.tables = make([]*table, len(scopes))
	for i, sc := range scopes {
		tb := sc.table(w.typ)
		w.tables[i] = tb
		tb.watches = append(tb.watches, w)
		switch {
		case tb.named != nil:
			tb.index(w)
		case len(tb.watches) > few:
			tb.named = make(map[string][]*watch)
			for _, o := range tb.watches {
				tb.index(o)
			}
		}
	}
}

// leaveLocked undoes joinLocked.
func (e *Engine) leaveLocked(w *watch) {
	for _, tb := range w.tables {
		if w.wildcard {
			tb.dropWild(w)
		}
		for name := range w.named {
			tb.dropName(name, w)
		}
		tb.watches = without(tb.watches, w)
		e.tidyLocked(tb)
	}
	w.tables = nil
}
