//! Calls in one go: what is prepared is kept.

use super::call::Call;
use super::parts::Parts;
use super::prepared::{Prepared, check_device};
use crate::program::{Name, Program};
use crate::{Caps, Gpu, Result, Shapes, Tensor};
use std::sync::{Arc, Mutex};

/// How many shapes are kept prepared.
const PREPARED: usize = 32;

/// What was prepared last, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Vec<(Option<Key>, Arc<Kept>)>>);

/// What a program follows from: which one of a type's, and the shapes. Where other things count too it has none, and is compared.
type Key = (&'static str, Shapes);

/// Calls on one set of scratch buffers go one after another.
#[derive(Debug)]
struct Kept {
    parts: Arc<Parts>,
    busy: futures::lock::Mutex<()>,
}

/// The results of a call, by name.
#[derive(Debug)]
pub(crate) struct Found(Vec<(Name, Tensor)>);

impl Found {
    /// A result that the program has.
    pub fn take(&mut self, name: &str) -> Tensor {
        self.take_if(name).expect("a result of the program")
    }

    pub fn into_all(self) -> Vec<(Name, Tensor)> {
        self.0
    }

    pub fn take_if(&mut self, name: &str) -> Option<Tensor> {
        let i = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(i).1)
    }
}

/// How a call is planned.
pub(crate) type Planner<'a> = &'a dyn Fn(&Caps, &Shapes) -> Result<Program>;

impl Gpu {
    /// Runs a call: allocates what it does not bring, submits, and has the results checked once they are read.
    /// `pass` tells programs of one cache apart; `written` are tensors that the call brings and that are written, `wanted` outputs
    /// that may be left out.
    #[allow(clippy::too_many_arguments)] // each call says all of it
    pub(crate) fn forward<'a>(
        &'a self,
        cache: &'a Cache,
        pass: &'static str,
        plan: Planner<'_>,
        defaults: &'a [(Name, Tensor)],
        call: &'a dyn Call,
        written: &[&str],
        wanted: &[&'static str],
    ) -> impl Future<Output = Result<Found>> + use<'a> {
        let shapes = wanted.iter().fold(self.key(call, written), |shapes, &name| shapes.wanted(name));
        let key = (pass, shapes);
        let same = |(other, _): &Entry| other.as_ref() == Some(&key);
        // Planning is done at once: the planner need not go to another thread.
        let kept = cache.find(same).map_or_else(|| self.planned(call, plan, &key.1).map(Err), |kept| Ok(Ok(kept)));
        async move {
            let kept = match kept? {
                Ok(kept) => kept,
                Err(program) => cache.keep(Some(key), Parts::new(self, program).await?),
            };
            self.run_kept(&kept, defaults, call).await
        }
    }

    /// The same where more than shapes says what runs: it is planned each time, and what was prepared for the same program is kept
    /// with the device.
    pub(crate) fn run<'a>(
        &'a self,
        plan: Planner<'_>,
        defaults: &'a [(Name, Tensor)],
        call: &'a dyn Call,
    ) -> impl Future<Output = Result<Found>> + use<'a> {
        let program = self.planned(call, plan, &self.key(call, &[]));
        async move {
            let (program, cache) = (program?, self.cache());
            let kept = match cache.find(|(_, kept)| kept.parts.program == program) {
                Some(kept) => kept,
                None => cache.keep(None, Parts::new(self, program).await?),
            };
            self.run_kept(&kept, defaults, call).await
        }
    }

    fn planned(&self, call: &dyn Call, plan: Planner<'_>, shapes: &Shapes) -> Result<Program> {
        self.alive()?;
        call.tensors().iter().try_for_each(|(name, tensor)| check_device(name, tensor, self))?;
        plan(self.caps(), shapes)
    }

    async fn run_kept(&self, kept: &Kept, defaults: &[(Name, Tensor)], call: &dyn Call) -> Result<Found> {
        let (given, prepared) = (call.tensors(), Prepared::of(self, kept.parts.clone(), defaults));
        let mut made = vec![];
        for spec in &prepared.plan().tensors {
            let known = given.iter().map(|(name, _)| name).chain(defaults.iter().map(|(name, _)| name));
            if !known.into_iter().any(|name| *name == spec.name) {
                made.push((spec.name.clone(), Tensor::empty(self, spec.layout.clone()).await?));
            }
        }
        let all = given.iter().map(|(name, tensor)| (name.clone(), *tensor));
        let all = all.chain(made.iter().map(|(name, tensor)| (name.clone(), tensor))).collect();
        let busy = kept.busy.lock().await;
        let checks = prepared.submit_checked(all, call.numbers(), true).await?;
        if !made.is_empty() {
            // Another call has other results: nothing holds these but the caller.
            kept.parts.forget();
        }
        drop(busy);
        // What was found wrong with what came in holds for all that comes of it.
        let checked = |tensor: Tensor| {
            let tensor = checks.iter().cloned().fold(tensor, Tensor::with_check);
            given.iter().fold(tensor, |tensor, (_, from)| tensor.with_checks_of(from))
        };
        Ok(Found(made.into_iter().map(|(name, tensor)| (name, checked(tensor))).collect()))
    }

    /// What a prepared call is kept under: whatever the buffers are, offsets count modulo the alignment of bindings. In a buffer that
    /// is written, distances count too.
    fn key(&self, call: &dyn Call, written: &[&str]) -> Shapes {
        let (given, mut shapes) = (call.tensors(), Shapes::default());
        let is_written = |tensor: &Tensor| {
            let own = |(name, other): &(Name, &Tensor)| written.contains(&&**name) && other.buffer() == tensor.buffer();
            given.iter().any(own)
        };
        for (i, (name, tensor)) in given.iter().enumerate() {
            let (mut layout, mut first) = (tensor.layout().clone(), i);
            if is_written(tensor) {
                let shares = |(_, other): &(Name, &Tensor)| other.buffer() == tensor.buffer();
                first = given[..i].iter().position(shares).unwrap_or(i);
            } else {
                layout.offset %= (self.caps().binding_alignment() / layout.dtype.bytes()) as usize;
            }
            shapes.push(name.clone(), layout, first);
        }
        call.numbers().into_iter().for_each(|(name, numbers)| shapes.push_numbers(name, numbers.into_owned()));
        shapes
    }
}

/// What is kept, under its key.
type Entry = (Option<Key>, Arc<Kept>);

impl Cache {
    fn find(&self, same: impl Fn(&Entry) -> bool) -> Option<Arc<Kept>> {
        let all = self.0.lock().expect("no panic under this lock");
        all.iter().find(|entry| same(entry)).map(|(_, kept)| kept.clone())
    }

    fn keep(&self, key: Option<Key>, parts: Parts) -> Arc<Kept> {
        let kept = Arc::new(Kept { parts: Arc::new(parts), busy: futures::lock::Mutex::new(()) });
        let mut all = self.0.lock().expect("no panic under this lock");
        if all.len() == PREPARED {
            all.remove(0);
        }
        all.push((key, kept.clone()));
        kept
    }
}
