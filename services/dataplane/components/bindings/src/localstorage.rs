//! `bindings.localstorage`: files of the app's own, beneath its folder.
//!
//! `rootPath` is a path in that folder, however it is written: no app sees another's files, nor the
//! node's. Answers and errors name paths by `rootPath`, as Dapr's own binding does.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use std::{path::PathBuf, sync::Arc};
use weft_components_api::{
    BindingError, BindingRequest, BindingResponse, Block, Component, Driver, Field, InitError, Instance,
    OutputBinding, Schema,
    beneath::{Folder, PathError, parts},
};

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalStorage;

impl Driver for LocalStorage {
    fn block(&self) -> Block {
        Block::Bindings
    }

    fn kind(&self) -> &'static str {
        "bindings.localstorage"
    }

    fn schema(&self) -> &'static Schema {
        &Schema {
            fields: &[Field {
                name: "rootPath",
                required: true,
            }],
        }
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let root = instance.metadata.get("rootPath").unwrap_or_default().to_owned();
            let opened = blocking(move || Storage::open(instance.home.files, &root)).await;
            let storage = opened.map_err(InitError::Failed)?;
            Ok(Component::Binding {
                input: None,
                output: Some(Arc::new(Binding(Arc::new(storage)))),
            })
        }
        .boxed()
    }
}

/// Once begun it is done to its end, whoever waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err("the agent is shutting down".into()))
}

struct Storage {
    root: Folder,
    /// As paths are named.
    name: String,
}

struct Binding(Arc<Storage>);

impl OutputBinding for Binding {
    fn operations(&self) -> &'static [&'static str] {
        &["create", "get", "list", "delete"]
    }

    fn invoke(
        &self,
        request: BindingRequest,
    ) -> BoxFuture<'_, Result<Option<BindingResponse>, BindingError>> {
        let storage = self.0.clone();
        async move {
            let done = blocking(move || storage.invoke(&request)).await;
            let answer = |data| BindingResponse {
                data,
                ..BindingResponse::default()
            };
            done.map(|data| data.map(answer)).map_err(BindingError::Failed)
        }
        .boxed()
    }
}

impl Storage {
    fn open(files: PathBuf, root: &str) -> Result<Self, String> {
        let failed = |e: PathError| format!("unable to create directory specified by 'rootPath' {root}: {e}");
        let steps = parts(root).map_err(failed)?;
        let root = Folder::make(&files)
            .and_then(|folder| folder.make_in(&steps))
            .map_err(failed)?;
        let name = format!("/{}", steps.join("/"));
        Ok(Self { root, name })
    }

    fn shown(&self, steps: &[String]) -> String {
        let name = self.name.trim_end_matches('/');
        format!("{name}/{}", steps.join("/"))
    }

    fn invoke(&self, request: &BindingRequest) -> Result<Option<Bytes>, String> {
        let given = request.parameter("fileName").unwrap_or_default();
        let steps = parts(given).map_err(|e| format!("error getting absolute path for file {given}: {e}"))?;
        match request.operation.as_str() {
            "create" if given.is_empty() => self.create(&[uuid::Uuid::new_v4().to_string()], &request.data),
            "create" => self.create(&steps, &request.data),
            "get" => self.get(&steps),
            "list" => self.list(&steps),
            "delete" => self.delete(&steps),
            other => Err(format!("unsupported operation {other}")),
        }
    }

    fn create(&self, steps: &[String], data: &Bytes) -> Result<Option<Bytes>, String> {
        let path = self.shown(steps);
        let Some((name, above)) = steps.split_last() else {
            return Err(format!("error creating file {path}: is a directory"));
        };
        let folder = self
            .root
            .make_in(above)
            .map_err(|e| format!("error creating directory {}: {e}", self.shown(above)))?;
        folder
            .write(name, &content(data))
            .map_err(|e| format!("error creating file {path}: {e}"))?;
        let answer = serde_json::json!({ "fileName": steps.join("/") });
        Ok(Some(answer.to_string().into()))
    }

    fn get(&self, steps: &[String]) -> Result<Option<Bytes>, String> {
        let path = self.shown(steps);
        let Some((name, above)) = steps.split_last() else {
            return Err(format!("error reading file {path}: is a directory"));
        };
        let read = self.root.enter(above).and_then(|folder| folder.read(name));
        match read {
            Ok(data) => Ok(Some(data.into())),
            Err(e) if e.is_not_found() => Err(format!("file not found: {path}")),
            Err(e) => Err(format!("error opening path {path}: {e}")),
        }
    }

    fn delete(&self, steps: &[String]) -> Result<Option<Bytes>, String> {
        let path = self.shown(steps);
        let Some((name, above)) = steps.split_last() else {
            return Err(format!("error deleting file {path}: it is the root"));
        };
        let removed = self.root.enter(above).and_then(|folder| folder.remove(name));
        match removed {
            Ok(()) => Ok(None),
            Err(e) => Err(format!("error deleting file {path}: {e}")),
        }
    }

    fn list(&self, steps: &[String]) -> Result<Option<Bytes>, String> {
        let path = self.shown(steps);
        let folder = self.root.enter(steps);
        let folder = folder.map_err(|e| format!("error getting stats for path {path}: {e}"))?;
        let found = folder
            .list()
            .map_err(|e| format!("error listing files in the directory {path}: {e}"))?;
        let path = path.trim_end_matches('/');
        let found: Vec<String> = found.into_iter().map(|file| format!("{path}/{file}")).collect();
        let answer = match found.is_empty() {
            // As Go writes a list that was never begun.
            true => serde_json::Value::Null,
            false => found.into(),
        };
        Ok(Some(answer.to_string().into()))
    }
}

/// A text in quotes is what is between them, and what can be read as base64 stands for its bytes.
fn content(data: &Bytes) -> Bytes {
    let data = match serde_json::from_slice::<String>(data) {
        Ok(text) => Bytes::from(text),
        Err(_) => data.clone(),
    };
    match STANDARD.decode(&data) {
        Ok(decoded) => decoded.into(),
        Err(_) => data,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::instance;

    async fn open(files: PathBuf) -> Arc<dyn OutputBinding> {
        let mut instance = instance("files", &[("rootPath", "/data/in")]);
        instance.home.files = files;
        match LocalStorage.open(instance).await {
            Ok(Component::Binding { input: None, output }) => output.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn invoke(
        binding: &Arc<dyn OutputBinding>,
        operation: &str,
        file: &str,
        data: &str,
    ) -> Result<Option<String>, String> {
        let request = BindingRequest {
            operation: operation.into(),
            data: data.to_owned().into(),
            metadata: vec![("fileName".into(), file.into())],
        };
        let answer = binding.invoke(request).await;
        answer
            .map(|a| a.map(|a| String::from_utf8(a.data.to_vec()).unwrap()))
            .map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn files_are_created_read_listed_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let binding = open(dir.path().join("shop/cart")).await;
        assert_eq!(binding.operations(), ["create", "get", "list", "delete"]);
        let text = |s: &str| Ok(Some(s.to_owned()));
        assert_eq!(invoke(&binding, "list", "", "").await, text("null"));
        assert_eq!(
            invoke(&binding, "create", "a/b.txt", "\"hello, world\"").await,
            text("{\"fileName\":\"a/b.txt\"}")
        );
        assert_eq!(
            invoke(&binding, "create", "c", "\"aGVsbG8=\"").await,
            text("{\"fileName\":\"c\"}")
        );
        assert_eq!(
            invoke(&binding, "create", "d", "{\"x\":1}").await,
            text("{\"fileName\":\"d\"}")
        );
        assert_eq!(invoke(&binding, "get", "a/b.txt", "").await, text("hello, world"));
        assert_eq!(invoke(&binding, "get", "c", "").await, text("hello"));
        assert_eq!(invoke(&binding, "get", "d", "").await, text("{\"x\":1}"));
        assert_eq!(
            invoke(&binding, "list", "", "").await,
            text("[\"/data/in/a/b.txt\",\"/data/in/c\",\"/data/in/d\"]")
        );
        assert_eq!(
            invoke(&binding, "list", "a", "").await,
            text("[\"/data/in/a/b.txt\"]")
        );
        assert_eq!(invoke(&binding, "delete", "c", "").await, Ok(None));
        assert_eq!(
            invoke(&binding, "get", "c", "").await,
            Err("file not found: /data/in/c".into())
        );
        assert!(
            invoke(&binding, "delete", "c", "")
                .await
                .unwrap_err()
                .contains("error deleting file /data/in/c")
        );
        let named = invoke(&binding, "create", "", "\"x\"").await.unwrap().unwrap();
        let named: serde_json::Value = serde_json::from_str(&named).unwrap();
        assert_eq!(named["fileName"].as_str().unwrap().len(), 36);
    }

    #[tokio::test]
    async fn paths_stay_in_the_apps_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("shop/other")).unwrap();
        std::fs::write(dir.path().join("shop/other/secret"), "x").unwrap();
        let binding = open(dir.path().join("shop/cart")).await;
        for path in ["../../../shop/other/secret", "/../other/secret", "/etc/passwd"] {
            let error = invoke(&binding, "get", path, "").await.unwrap_err();
            assert!(error.starts_with("file not found: /data/in/"), "{error}");
        }
        // Written likewise, it is there and nowhere else.
        invoke(&binding, "create", "../../other/secret", "\"mine!\"")
            .await
            .unwrap();
        assert_eq!(std::fs::read(dir.path().join("shop/other/secret")).unwrap(), b"x");
        let own = dir.path().join("shop/cart/data/in/other/secret");
        assert_eq!(std::fs::read(own).unwrap(), b"mine!");
    }
}
