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
	wild      []*watch
	named     map[string][]*watch
	refs      int // watches whose tables hold this one
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
		tb = &table{scope: sc, typ: typ, resources: make(map[string]*Resource), named: make(map[string][]*watch)}
		sc.tables[typ] = tb
	}
	return tb
}

// tidyLocked forgets a table, and then its scope, that nothing refers to.
func (e *Engine) tidyLocked(tb *table) {
	if tb.refs == 0 && len(tb.resources) == 0 {
		delete(tb.scope.tables, tb.typ)
		e.tidyScopeLocked(tb.scope)
	}
}

func (e *Engine) tidyScopeLocked(sc *scope) {
	if sc.refs == 0 && len(sc.tables) == 0 {
		delete(e.scopes, sc.name)
	}
}

func (tb *table) addName(name string, w *watch) { tb.named[name] = append(tb.named[name], w) }

func (tb *table) dropName(name string, w *watch) {
	list := without(tb.named[name], w)
	if len(list) == 0 {
		delete(tb.named, name)
		return
	}
	tb.named[name] = list
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
		tb.refs++
		w.tables[i] = tb
		if w.wildcard {
			tb.wild = append(tb.wild, w)
		}
		for name := range w.named {
			tb.addName(name, w)
		}
	}
}

// leaveLocked undoes joinLocked.
func (e *Engine) leaveLocked(w *watch) {
	for _, tb := range w.tables {
		if w.wildcard {
			tb.wild = without(tb.wild, w)
		}
		for name := range w.named {
			tb.dropName(name, w)
		}
		tb.refs--
		e.tidyLocked(tb)
	}
	w.tables = nil
}
