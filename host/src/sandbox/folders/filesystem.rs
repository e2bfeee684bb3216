//! What of `wasi:filesystem` is not as the library has it: what makes files, makes them longer, or makes links.

use wasmtime::{
    StoreContextMut,
    component::{Linker, Resource},
};
use wasmtime_wasi::{
    filesystem::WasiFilesystemView as _,
    p2::{
        DynOutputStream, FsResult,
        bindings::filesystem::types::{
            Descriptor, DescriptorFlags, ErrorCode, Filesize, HostDescriptor as _, OpenFlags, PathFlags,
        },
    },
};

use crate::sandbox::{
    body::Counted,
    state::{State, WASI},
};

fn full() -> wasmtime::Error {
    wasmtime::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull))
}

/// An error as the guest gets it; what is none of WASI's is a trap.
fn told<T>(result: FsResult<T>) -> wasmtime::Result<Result<T, ErrorCode>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

/// Counts what is written to a stream that was just made.
fn counted(
    state: &mut State,
    made: FsResult<Resource<DynOutputStream>>,
) -> wasmtime::Result<Result<Resource<DynOutputStream>, ErrorCode>> {
    let made = match told(made)? {
        Ok(made) => made,
        Err(code) => return Ok(Err(code)),
    };
    let bytes = state.room.bytes.clone();
    let table = state.filesystem().table;
    let stream = table.delete(made)?;
    let counted: DynOutputStream = Box::new(Counted::new(stream, bytes, full));
    Ok(Ok(table.push(counted)?))
}

type Opening = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);

/// Shadows what makes files, makes them longer, or makes links. Shadowing has to be allowed.
pub(in crate::sandbox) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut types = linker.instance(&format!("wasi:filesystem/types@{WASI}"))?;
    types.func_wrap_async("[method]descriptor.open-at", |mut store: StoreContextMut<'_, State>, asked: Opening| {
        Box::new(async move {
            let state = store.data_mut();
            let (folder, path_flags, path, open, flags) = asked;
            if open.contains(OpenFlags::CREATE) && !exists(state, &folder, path_flags, &path).await? && !makes(state) {
                return Ok((Err(ErrorCode::Quota),));
            }
            let Some(held) = state.descriptor("a file") else { return Ok((Err(ErrorCode::Quota),)) };
            let opened = told(state.filesystem().open_at(folder, path_flags, path, open, flags).await)?;
            if opened.is_ok() {
                state.opened(held);
            }
            Ok((opened,))
        })
    })?;
    types.func_wrap_async(
        "[method]descriptor.create-directory-at",
        |mut store: StoreContextMut<'_, State>, (folder, path): (Resource<Descriptor>, String)| {
            Box::new(async move {
                let state = store.data_mut();
                if !makes(state) {
                    return Ok((Err(ErrorCode::Quota),));
                }
                let made = state.filesystem().create_directory_at(folder, path).await;
                Ok((told(made)?,))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.write",
        |mut store: StoreContextMut<'_, State>, (file, bytes, at): (Resource<Descriptor>, Vec<u8>, Filesize)| {
            Box::new(async move {
                let state = store.data_mut();
                if !state.room.bytes.take(bytes.len() as u64) {
                    return Ok((Err(ErrorCode::Quota),));
                }
                let written = state.filesystem().write(file, bytes, at).await;
                Ok((told(written)?,))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.set-size",
        |mut store: StoreContextMut<'_, State>, (file, size): (Resource<Descriptor>, Filesize)| {
            Box::new(async move {
                let state = store.data_mut();
                let before = match told(state.filesystem().stat(Resource::new_borrow(file.rep())).await)? {
                    Ok(found) => found.size,
                    Err(code) => return Ok((Err(code),)),
                };
                if !state.room.bytes.take(size.saturating_sub(before)) {
                    return Ok((Err(ErrorCode::Quota),));
                }
                let set = state.filesystem().set_size(file, size).await;
                Ok((told(set)?,))
            })
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store: StoreContextMut<'_, State>, (file, at): (Resource<Descriptor>, Filesize)| {
            let state = store.data_mut();
            let made = state.filesystem().write_via_stream(file, at);
            Ok((counted(state, made)?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut store: StoreContextMut<'_, State>, (file,): (Resource<Descriptor>,)| {
            let state = store.data_mut();
            let made = state.filesystem().append_via_stream(file);
            Ok((counted(state, made)?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.symlink-at",
        |mut store: StoreContextMut<'_, State>, _: (Resource<Descriptor>, String, String)| {
            store.data_mut().context().deny("a link in its folder: plugins cannot make links");
            Ok((Err::<(), _>(ErrorCode::NotPermitted),))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.link-at",
        |mut store: StoreContextMut<'_, State>,
         _: (Resource<Descriptor>, PathFlags, String, Resource<Descriptor>, String)| {
            store.data_mut().context().deny("a link in its folder: plugins cannot make links");
            Ok((Err::<(), _>(ErrorCode::NotPermitted),))
        },
    )
}

/// Takes room for one more file or folder.
fn makes(state: &State) -> bool {
    state.room.files.take(1)
}

async fn exists(
    state: &mut State,
    folder: &Resource<Descriptor>,
    flags: PathFlags,
    path: &str,
) -> wasmtime::Result<bool> {
    let folder = Resource::new_borrow(folder.rep());
    Ok(told(state.filesystem().stat_at(folder, flags, path.to_owned()).await)?.is_ok())
}
